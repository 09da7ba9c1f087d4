"""Words that have no part yet: refused by name, and accepted where they ask for nothing."""

from __future__ import annotations

import copy
import re
from functools import partial
from typing import Any

import pytest

from rayfed.config.load import load_config
from tests import configs
from tests.configs import LEAST

EMPTY_SECTIONS: dict[str, Any] = {
    "transforms": [],
}

problems = partial(configs.problems, load=load_config)
the_problem = partial(configs.the_problem, load=load_config)


@pytest.mark.parametrize(
    ("change", "at"),
    [
        *((f"transforms=[{{kind: {k}, x: 1}}]", "transforms") for k in ("clip", "gaussian", "topk")),
    ],
)
def test_what_is_not_built_yet_is_refused_by_its_name(change: str, at: str) -> None:
    sentence = the_problem(change)
    assert sentence.startswith(f"{at}: ") and "not available yet" in sentence
    kind = re.search(r"kind: (\w+)|, (\w+)\]|=([\w:/-]+)$", change)
    assert kind is not None and next(g for g in kind.groups() if g) in sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("federation.participation=fastest", "federation.participation.kind: 'fastest' found"),
        ("transform=[]", "transform: unknown key (did you mean 'transforms'?); known: name, seed, "),
    ],
)
def test_an_unknown_word_is_reported_as_in_other_sections(change: str, sentence: str) -> None:
    assert the_problem(change).startswith(sentence)


def test_what_asks_for_nothing_is_accepted_and_left_out() -> None:
    config = load_config({**LEAST, **copy.deepcopy(EMPTY_SECTIONS)})
    assert config == load_config(LEAST)
    assert not EMPTY_SECTIONS.keys() & config.to_dict().keys()
    assert load_config({**LEAST, "devices": "none", "failures": {"stragglers": {}}}) == config


def test_a_refused_word_does_not_hide_another_problem() -> None:
    found = problems(transforms=["clip"], rounds=0, federation={"clients": 0})
    assert [p.split(":")[0] for p in found] == [
        "transforms", "rounds", "federation.clients",
    ]  # fmt: skip


def test_a_known_transform_does_not_hide_an_unknown_one() -> None:
    assert any("'klip'" in p for p in problems(transforms=[{"kind": "clip", "norm": 1}, {"kind": "klip"}]))
