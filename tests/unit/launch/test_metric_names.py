"""Names of metrics that no row can have, refused before the start wherever a setting names one."""

from __future__ import annotations

from typing import Any

import pytest

from rayfed import methods
from rayfed.config.schema import Study
from rayfed.errors import ConfigError
from rayfed.launch import metric_names
from rayfed.launch.federations import Federations
from rayfed.launch.preflight import load_request
from tests import toy


def known(method: str = "fedavg", **changes: Any) -> list[str]:
    c = toy.config(method, **changes)
    return metric_names.known(methods.of(c), toy.federation(c))


def problems(**changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Federations().of(toy.config(**changes))
    return caught.value.problems


def test_scopes_follow_from_federation_and_method() -> None:
    assert {"accuracy/global", "loss/unseen_ex", "accuracy/local"} <= set(known())
    assert not [n for n in known() if n.startswith("clusters/") or n.endswith("/cluster")]
    assert {"clusters/ari", "clusters/count", "accuracy/cluster"} <= set(known("ifca"))
    alone = {"federation": {"groups": {"kind": "none"}, "holdout": {"kind": "none"}}}
    assert not {"clusters/ari", "accuracy/unseen"} & set(known("ifca", **alone))
    assert "accuracy/personal" not in known(federation={"split": {"test": 0.0}, "holdout": {"kind": "none"}})
    assert "weights/spread" in known("fedmerge") and "time/simulated" not in known()


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (
            {"metric": "acuracy/global", "at": 0.9},
            "stop.metric: 'acuracy/global' found, .* (did you mean 'accuracy/global'?)",
        ),
        ({"metric": "accuracy", "at": 0.9}, "did you mean 'accuracy/"),
        (
            {"metric": "accuracy/cluster", "at": 0.9},
            "stop.metric: 'accuracy/cluster' found, which no round of this run measures",
        ),
        ({"metric": "rmse/global", "at": 0.9}, "there is loss/global, accuracy/global"),
        ({"metric": "accuracy/global", "at": 90}, "stop.at: 90 found, accuracy/global is a fraction; allowed: 0 to 1"),
    ],
)
def test_a_stop_that_could_never_come(stop: dict[str, Any], said: str) -> None:
    (found,) = problems(stop=stop)
    for part in said.split(" .* "):
        assert part in found, found


def test_a_stop_that_can_come() -> None:
    for metric in ("accuracy/global", "loss/personal_ex", "bytes/up", "time/round"):
        assert Federations().of(toy.config(stop={"metric": metric, "at": 0.5})), metric
    assert Federations().of(toy.config({"name": "fedmerge"}, stop={"metric": "weights/spread", "at": 0.5}))


def test_a_claim_about_nothing() -> None:
    arms = {"a": {}, "b": {"method": "ifca"}}
    claim = {"at": 1, "better": "b", "than": "a"}
    for metric, about in (("accuracy/clusters", ["a", "b"]), ("accuracy/cluster", ["a"])):
        study = load_request({**toy.TOY, "method": "fedavg", "arms": arms, "claim": {**claim, "metric": metric}})
        assert isinstance(study, Study)
        with pytest.raises(ConfigError) as caught:
            Federations().check(study)
        found = caught.value.problems
        assert [p.partition(": ")[0] for p in found] == [f"arms.{arm}" for arm in about]
        assert all(f"claim.metric: {metric!r} found, which no round of this run measures" in p for p in found)
