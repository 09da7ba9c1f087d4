"""Every method × every check (DESIGN §6.2). A method without a row in VARIANTS runs with its defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayfed import methods
from tests.conformance.checks import CHECKS, Case, every_part_is_seen

SHORT = {"iterations": 2, "student_steps": 2, "batch": 8, "noise": 4}  # DisUE's D-phase
ADAM = {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}, "schedule": {"kind": "cosine"}}
MOMENTUM = {"optimizer": {"momentum": 0.9, "nesterov": True}, "epochs": None, "steps": 5}

# settings, or (settings, changes to the config)
VARIANTS: dict[str, list[Any]] = {
    "disue": [
        SHORT,
        {**SHORT, "secure_similarity": "rotation", "signature": "all", "mix": "logit", "generator_ema": 0.9},
        {**SHORT, "clusterer": "least_loss", "adversary": "l1", "sampler": "group", "student_init": "previous"},
        {"distill": False, "clusterer": "oracle", "signature": "counts"},
    ],
    "fedavg": [
        {},
        ({"server_lr": 0.5}, {"local": ADAM, "resources": {"cohort": 4}}),
        ({}, {"local": MOMENTUM, "federation": {"participation": {"kind": "cyclic"}}}),
    ],
    "ifca": [{}, {"clusters": 2, "weight": "examples"}],
    "scaffold": [{}, ({"server_lr": 0.5}, {"local": {"schedule": {"kind": "exponential", "gamma": 0.5}}})],
}


def cases(name: str) -> list[Case]:
    rows = [v if isinstance(v, tuple) else (v, {}) for v in VARIANTS.get(name, [{}])]
    return [Case({"name": name, **settings}, changes) for settings, changes in rows]


ALL = [pytest.param(case, id=f"{name}-{i}") for name in methods.names() for i, case in enumerate(cases(name))]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("case", ALL)
def test_method(case: Case, check: Callable[[Case, Path], None], tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize("name", methods.names())
def test_every_declared_part_is_seen(name: str) -> None:
    every_part_is_seen(cases(name))


def test_variants_name_methods() -> None:
    assert set(VARIANTS) <= set(methods.names())
