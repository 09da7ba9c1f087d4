"""The section `system` of a config: for readers, judged like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rayfed.config import system
from rayfed.config.load import load_config
from rayfed.errors import ConfigError
from tests.configs import LEAST, problems

GOOD: dict[str, Any] = {
    "about": "A thing.", "paper": "Roe et al. 2020 (2001.00001)", "family": ["clustering"], "requires": "nothing",
    "formula": "x <- x", "here": "digits", "ours": "all of it", "unclaimed": "all of it",
}  # fmt: skip


def test_a_run_is_the_same_without_it(tmp_path: Path) -> None:
    plain = load_config(LEAST)
    assert load_config({**LEAST, "system": GOOD}) == plain and "system" not in plain.to_dict()
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({**LEAST, "system": GOOD}))
    assert load_config(file) == plain
    study = load_config({**LEAST, "system": GOOD, "seeds": [0, 1]})
    assert study == load_config({**LEAST, "seeds": [0, 1]})


def test_all_that_is_wrong_with_it_is_said_with_what_is_wrong_elsewhere() -> None:
    wrong = {**{k: v for k, v in GOOD.items() if k != "formula"}, "famly": [], "ours": 3}
    found = problems(system=wrong, rounds=0, load=load_config)
    assert any(p.startswith("system.famly: unknown key (did you mean 'family'?)") for p in found)
    assert "system.formula: missing" in found
    assert any(p.startswith("system.ours: 3 found") for p in found) and any(p.startswith("rounds: 0") for p in found)


def test_reading_it() -> None:
    made = system.read(GOOD)
    assert made.family == ["clustering"] and made.missing is None and made.claims == []
    with pytest.raises(ConfigError, match="system"):
        system.read("a system")


def test_ready_folders_have_a_variable() -> None:
    from rayfed.config.load import READY

    assert load_config({**LEAST, "init": {"from": "${RAYFED_READY}/digits_start"}}).to_dict()["init"] == {
        "from": str(READY / "digits_start")
    }
