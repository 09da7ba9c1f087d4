"""AFA-CS: with everybody in every step it is AFA-CD, its sum is that of the newest directions, and frequent workers do not win."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayfed import methods, tree
from tests import toy

TIERS = {"devices": {"profile": "tiers", "tiers": [{"share": 0.5, "speed": 10.0}, {"share": 0.5, "speed": 3.0}]}}
needs_cd = pytest.mark.skipif("afa_cd" not in methods.names(), reason="compared with afa_cd, which is not there")


@needs_cd
def test_everybody_in_every_step_is_afa_cd() -> None:
    all_of_them = {"federation": {"per_round": None}}
    cs, cd = (
        toy.simulate({"name": m, "buffer": 12}, rounds=3, dtype="float64", **all_of_them) for m in ("afa_cs", "afa_cd")
    )
    assert float(tree.norm(tree.sub(cs.state["model"], cd.state["model"]))) < 1e-13


@pytest.mark.parametrize("missing", ["present", "zero"])
def test_the_sum_is_that_of_the_newest(missing: str) -> None:
    settings = {"name": "afa_cs", "missing": missing}
    five, six = (toy.simulate(settings, rounds=6, until=r, dtype="float64", **TIERS) for r in (5, 6))
    total = tree.zeros(six.state["sum"])
    for state in six.clients().values():
        total = tree.add(total, state["h_i"])
    assert float(tree.norm(tree.sub(total, six.state["sum"]))) < 1e-12 < float(tree.norm(total))
    of = len(six.clients()) if missing == "present" else 12
    assert int(six.state["came"].sum()) == len(six.clients())
    step = tree.sub(six.state["model"], five.state["model"])
    assert float(tree.norm(tree.sub(step, tree.scale(total, 0.5 / of)))) < 1e-12


@needs_cd
def test_the_cards_two_workers(quadratics: Any, tmp_path: Path) -> None:
    """f_1 = 5 (x - 1)^2 of a worker that comes nine times as often as the one of f_2 = (x + 1)^2 / 2, one reply a step: AFA-CD goes
    near the minimiser of 0.9 f_1 + 0.1 f_2, 0.978, AFA-CS near that of both, 9 / 11."""
    trace = tmp_path / "devices.csv"
    trace.write_text("client,speed,up,down\n0,9,inf,inf\n1,1,inf,inf\n")
    changes = toy.merge(
        quadratics(), {"devices": {"profile": "trace", "file": str(trace)}, "local": {"optimizer": {"lr": 0.001}}}
    )
    ends = {}
    for name in ("afa_cd", "afa_cs"):
        settings = {"name": name, "least": 5, "most": 5, "buffer": 1, "server_lr": 0.02}
        done = toy.simulate(settings, rounds=160, **changes)
        ends[name] = float(done.state["model"]["head.weight"])
        assert abs(sum(row["visits"] for row in done.rows) - 160) < 1
    assert ends["afa_cd"] == pytest.approx(0.978, abs=0.03)
    assert ends["afa_cs"] == pytest.approx(9 / 11, abs=0.02)
