"""The rules as a whole: what is refused before anything starts, and what several of them work out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import aggregate
from tests.configs import good, the_problem
from tests.unit.aggregate.updates import PLANE

RULES: dict[str, Any] = {
    "krum": {"f": 1}, "multi_krum": {"f": 1}, "trimmed_mean": {"f": 1}, "median": {}, "bulyan": {"f": 1}, "geometric_median": {},
    "norm_bound": {"norm": 1.0}, "flag": {}, "principal": {}, "foolsgold": {},
}  # fmt: skip


def test_every_kind_is_made_by_config() -> None:
    assert aggregate.KINDS.names() == sorted(RULES)
    for kind, settings in RULES.items():
        made = aggregate.of(good(aggregate={"kind": kind, **settings}))
        assert made is not None and aggregate.kind_of(made) == kind and made.__doc__
        assert {"gram", "rows", "fold"} >= set(made.needs) and made.needs
    assert aggregate.of(good()) is None and good(aggregate="mean") == good()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("aggregate=krumm", "aggregate.kind: 'krumm' found (did you mean 'krum'?), allowed: mean, bulyan, "),
        ("aggregate=krum", "aggregate.f: missing"),
        ("aggregate={kind: mean, f: 1}", "aggregate.f: unknown key; known: kind"),
        ("aggregate={kind: krum, f: 1, m: 2}", "aggregate.m: unknown key; known: f"),
        ("aggregate={kind: flag, output: papers}", "aggregate.output: 'papers' found (did you mean 'paper'?)"),
        ("aggregate=3", "aggregate: 3 found, should be a valid dictionary"),
        (
            "aggregate={kind: krum, f: 4}",
            "aggregate.f: 4 found, krum needs n >= 2 f + 3 and 10 clients are asked in a round; allowed: at most 3",
        ),
        (
            "aggregate={kind: bulyan, f: 2}",
            "bulyan needs n >= 4 f + 3 and 10 clients are asked in a round; allowed: at most 1",
        ),
        ("aggregate={kind: trimmed_mean, f: 5}", "trimmed_mean needs n >= 2 f + 1 and 10 clients are asked in a round"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(change: str, sentence: str) -> None:
    assert sentence in the_problem(change, "federation.per_round=10")


def test_a_rule_for_which_a_round_is_too_small_at_all() -> None:
    sentence = the_problem("aggregate={kind: krum, f: 0}", "federation.per_round=2")
    assert sentence.endswith("allowed: none; ask at least 3 clients a round")


@pytest.mark.parametrize(
    ("method", "kind", "sentence"),
    [
        ("local_only", "median", "local_only sends no update that is averaged; allowed: mean"),
        ("fedmerge", "krum", "with fedmerge each of its models gets another mixture of the updates; allowed: mean"),
    ],
)
def test_methods_that_cannot_be_ruled_are_named(method: str, kind: str, sentence: str) -> None:
    assert sentence in the_problem(
        f"aggregate={{kind: {kind}, f: 1}}" if kind == "krum" else f"aggregate={kind}", f"method={method}"
    )


def test_distances_are_those_of_the_updates() -> None:
    wanted = ((PLANE[:, None] - PLANE[None]) ** 2).sum(2)
    assert np.allclose(aggregate.distances(PLANE @ PLANE.T), wanted, rtol=0, atol=1e-12)
