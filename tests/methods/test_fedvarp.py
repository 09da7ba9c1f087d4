"""FedVARP: everybody there is uniform FedAvg, NumPy under partial participation, its mean over all draws is every client's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import tree
from rayfed.errors import ConfigError
from tests import toy


def test_three_rounds_in_numpy(plain: Any) -> None:
    done = toy.simulate({"name": "fedvarp", "server_lr": 0.8}, rounds=3, **plain.WORK)
    x = plain.vector(done.initial["model"])
    h = {i: np.zeros_like(x) for i in range(12)}
    assert len({d.ids for d in done.fed.drawn}) == 3
    for draw in done.fed.drawn:
        u = {i: plain.descend(x, *plain.data(done.fed, i)) - x for i in draw.ids}
        x = x + 0.8 * (np.mean([u[i] - h[i] for i in u], 0) + np.mean(list(h.values()), 0))
        h.update(u)
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)
    np.testing.assert_allclose(plain.vector(done.state["h"]), np.mean(list(h.values()), 0), atol=1e-12)
    for i, state in done.clients().items():
        np.testing.assert_allclose(plain.vector(state["h_i"]), h[int(i)], atol=1e-12)


def test_the_memory_of_those_who_are_absent_stays() -> None:
    two, three = (toy.simulate("fedvarp", rounds=3, until=r) for r in (2, 3))
    absent = set(two.clients()) - {str(i) for i in three.fed.drawn[2].ids}
    assert absent and all(tree.same(two.clients()[i], three.clients()[i]) for i in absent)


def test_the_two_parabolas(quadratics: Any) -> None:
    """Everybody in every round: FedAvg, 0.328039 and 0.439431."""
    changes = quadratics()
    for rounds, want in ((1, 0.328039), (2, 0.439431), (50, 0.496705)):
        done = toy.simulate("fedvarp", rounds=rounds, **changes)
        assert float(done.state["model"]["head.weight"]) == pytest.approx(want, abs=1e-6)


def test_only_updates_travel() -> None:
    """The memory is the server's: bytes are those of a model down and one up."""
    done = toy.simulate("fedvarp", rounds=2)
    assert done.rows[1]["bytes/up"] == 7 * 212 * 4 == done.rows[1]["bytes/down"]


@pytest.mark.parametrize("method", ["fedvarp", "fedstale", "afa_cs", "feddyn", "fedspeed"])
def test_a_server_that_remembers_gets_what_was_made(method: str) -> None:
    """Noted at clients as it was made, a memory would not be that of a server which got something else."""
    for changes, said in (
        (
            {"transforms": [{"kind": "sign"}]},
            f"transforms: sign found, {method} remembers updates as clients make them",
        ),
        (
            {"attacks": [{"kind": "noise", "clients": 1}]},
            f"attacks: noise found, {method} remembers updates as clients",
        ),
        ({"aggregate": "median"}, f"aggregate.kind: median found, but with {method} "),
    ):
        with pytest.raises(ConfigError, match=said):
            toy.config(method, **changes)
    toy.config(method, attacks=[{"kind": "label_flip", "clients": 1}])
