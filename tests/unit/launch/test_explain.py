"""Keys of a config in words: every key of the schema and of the methods, its kinds, its default."""

from __future__ import annotations

import pytest

from rayfed import methods
from rayfed.config.load import STUDY_KEYS
from rayfed.config.schema import Config
from rayfed.launch.explain import Meaning, explain, keys, text
from tests.configs import PATHS, refusal

TO_COME = ("aggregate", "attacks", "transforms", "devices", "failures.stragglers")


def test_every_key_of_the_contract_and_every_field_is_explained() -> None:
    known = set(keys())
    asked = {".".join(path) for path in PATHS}
    asked = {k for k in asked if not k.startswith(TO_COME)}
    assert {k for k in asked if k not in known and k not in ("method.name", "task.data.name")} == set()
    assert set(Config.model_fields) | set(STUDY_KEYS) <= known
    (lr,) = explain("local.optimizer.lr")
    assert lr == Meaning("local.optimizer.lr", "", "number > 0", "0.1", "Local learning rate.")


def test_a_key_that_several_kinds_have_says_which() -> None:
    found = {m.of: m for m in explain("federation.partition.alpha")}
    assert {"dirichlet", "quantity", "embedding", "longtail"} <= set(found) and "iid" not in found
    assert found["dirichlet"].default is None and found["dirichlet"].takes == "number > 0"
    (kind,) = explain("federation.partition.kind")
    assert "dirichlet | " in kind.takes and kind.default == "iid"
    assert "  dirichlet: number > 0, required\n" in text(explain("federation.partition.alpha"))


def test_what_a_setting_needs_is_said() -> None:
    (momentum,) = explain("nesterov")
    assert momentum.key == "local.optimizer.nesterov" and momentum.about.endswith(
        "Only with name: sgd and momentum other than 0."
    )


def test_a_section_lists_its_keys() -> None:
    first, *inner = explain("stop")
    assert first.takes == "section" and {m.key for m in inner} >= {"stop.metric", "stop.at"}
    assert {m.key for m in explain()} >= {"task", "method", "seeds"} and all("." not in m.key for m in explain())


def test_settings_of_methods() -> None:
    found = {m.of for m in explain("method.clusters")}
    assert {"disue", "ifca"} <= found <= methods.ready()
    shown = text(explain("method.server_lr"))
    assert shown.startswith("method.server_lr\n") and "fedavgm" in shown


@pytest.mark.parametrize(
    ("key", "near"),
    [("local.optimizer.lrr", "local.optimizer.lr"), ("rouns", "rounds"), ("momentun", "local.optimizer.momentum")],
)
def test_an_unknown_key_names_the_nearest(key: str, near: str) -> None:
    said = refusal(explain, key)
    assert (
        said.startswith(f"config explain: {key!r} is no key of a config (did you mean ")
        and near.rpartition(".")[2] in said
    )
