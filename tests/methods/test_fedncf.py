"""FedNCF: everything but the user's own part is averaged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import tree
from tests import toy

NCF = {**toy.TASTES, "task": {**toy.TASTES["task"], "model": {"name": "ncf", "dim": 4, "hidden": [6]}}}


@pytest.mark.parametrize("changes", [toy.TASTES, NCF], ids=["factors", "ncf"])
def test_the_users_part_stays_and_the_rest_is_fedavgs_of_personal_models(changes: Any) -> None:
    done = toy.simulate("fedncf", dtype="float64", rounds=1, **changes)
    plain = toy.simulate("fedavg", dtype="float64", rounds=1, **changes)
    user = [n for n in plain.state["model"] if n.startswith("user")]
    assert (
        user
        and not set(user) & done.state["model"].keys()
        and set(done.state["model"]) | set(user) == set(plain.state["model"])
    )
    # every user starts from the same vector, so that the first round is FedAvg's
    shared = {n: p for n, p in plain.state["model"].items() if n not in user}
    assert tree.same(done.state["model"], shared)
    moved = [c["user"] for c in done.clients().values()]
    assert len({tuple(torch.cat([p.reshape(-1) for p in m.values()]).tolist()) for m in moved}) == len(moved) == 7


def test_a_user_is_served_its_own_part_of_it() -> None:
    done = toy.simulate("fedncf", dtype="float64", **toy.TASTES)
    row, clients = done.scores()
    fed = done.fed
    for c, own in done.clients().items():
        rows = fed.federation.test[int(c)]
        batch = fed.task.batch({n: a[rows] for n, a in fed.federation.arrays.items()})
        want = float(fed.task.metrics({**done.state["model"], **own["user"]}, batch)["loss"].mean())
        assert next(r["loss"] for r in clients if r["client"] == int(c)) == pytest.approx(want)
    assert not [n for n in row if n.endswith("/global")]


def test_other_tasks_are_refused() -> None:
    from rayfed.errors import ConfigError
    from rayfed.launch.federations import Federations

    with pytest.raises(ConfigError, match="fedncf needs items"):
        Federations().of(toy.config("fedncf"))
