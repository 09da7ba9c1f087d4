"""Settings in which arms differ."""

from __future__ import annotations

from rayfed.report.settings import compared, differing


def test_only_what_makes_an_experiment_is_compared():
    a = {"seed": 0, "name": "a", "local": {"epochs": 1, "lr": 0.1}, "track": [], "method": {"name": "fedavg"}}
    b = {
        "seed": 1,
        "name": "b",
        "local": {"epochs": 2, "lr": 0.1},
        "track": ["mlflow"],
        "method": {"name": "ifca", "clusters": 3},
    }
    assert differing([a, b]) == {
        "local.epochs": ["1", "2"], "method.name": ["fedavg", "ifca"], "method.clusters": [None, "3"],
    }  # fmt: skip
    assert differing([a, a]) == {} and set(compared(a)) == {"local", "method"}
