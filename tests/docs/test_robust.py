"""docs/robust.md names every rule and every attack with all their settings, and its command is a config."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rayfed import aggregate, attack
from rayfed.launch.preflight import load_request

TEXT = (Path(__file__).parents[2] / "docs" / "robust.md").read_text()
ROWS = {r.split("`")[1]: r for r in TEXT.splitlines() if r.startswith("| `")}


@pytest.mark.parametrize("registry", [aggregate.KINDS, attack.KINDS], ids=["aggregate", "attack"])
def test_every_kind_has_a_row_with_its_settings(registry: Any) -> None:
    for kind in registry.names():
        settings = registry.get(kind).Settings.model_fields.keys() - {"clients"}
        assert settings <= set(re.findall(r"`(\w+)", ROWS[kind])) | set(re.findall(r"\b(f|z|std)\b", ROWS[kind])), kind


def test_nothing_else_is_named() -> None:
    assert ROWS.keys() - {"mean", "aggregate.kind", "attacks[].kind"} == {
        *aggregate.KINDS.names(),
        *attack.KINDS.names(),
    }


def test_conditions_are_those_of_the_rules() -> None:
    for kind in aggregate.KINDS.names():
        condition = getattr(aggregate.KINDS.get(kind), "condition", "")
        assert ROWS[kind].rstrip("| ").endswith(condition) if condition else "n >=" not in ROWS[kind]


def test_the_command_is_a_config() -> None:
    (block,) = re.findall(r"```sh\n(rayfed run fedavg.*?)```", TEXT, re.S)
    words = shlex.split(block.replace("\\\n", " "))
    load_request(words[2], [words[i + 1] for i, w in enumerate(words) if w == "--set"])
