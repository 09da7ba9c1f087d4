"""Splits of a request: made once for all that share one, and judged for every arm."""

from __future__ import annotations

import pytest

from rayfed import partition
from rayfed.config.schema import Study
from rayfed.errors import ConfigError
from rayfed.launch.federations import Federations
from rayfed.launch.preflight import load_request

BASE = {
    "rounds": 1, "task": {"data": "digits", "model": "linear"}, "federation": {"clients": 4, "partition": {"kind": "iid"}},
    "method": "fedavg",
}  # fmt: skip


def study(**arms: object) -> Study:
    made = load_request({**BASE, "seeds": [0], "arms": arms})
    assert isinstance(made, Study)
    return made


def test_arms_of_a_seed_share_one_split(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = partition.build
    monkeypatch.setattr(partition, "build", lambda config: built.append(config.seed) or build(config))
    known, made = Federations(), study(a={}, b={"method": "local_only"})
    assert known.of(made.arms["a"]) is known.of(made.arms["b"]) and built == [0]
    assert known.of(made.arms["a"].model_copy(update={"seed": 1})) is not None and built == [0, 1]


def test_what_is_wrong_with_some_arms_is_named_with_them() -> None:
    groups = {"federation": {"groups": {"kind": "domain"}}}
    with pytest.raises(ConfigError) as caught:
        Federations().check(study(good={}, one=groups, two={**groups, "method": "local_only"}))
    (problem,) = caught.value.problems
    assert problem.startswith("arms.one, two: federation.groups.kind: domain found")
