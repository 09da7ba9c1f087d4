"""A whole cohort at once: clients that have finished are set aside, and what a step passes on is not copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import execute
from rayfed import visits as v
from rayfed.execute import vmap
from rayfed.execute.tuning import replay
from rayfed.visits import ClientContext, Phase, Visit
from tests.unit.execute.cohorts import (
    D,
    apart,
    cohort,
    data,
    gather,
    run,
    sizes,
)


def test_a_finished_client_is_frozen() -> None:
    """After its last batch nothing of a client moves: neither parameters nor Adam's moments nor counters."""
    visit = gather((v.epochs(2),))
    counted = visit._replace(
        phases=[visit.phases[0]._replace(step=lambda c, b, k: {**c, "t": c["t"] + 1, "n": c["n"] * 1.0 + 5.0})]
    )
    parts, _, steps = run("vmap", counted, cohort(counted))
    assert parts["t"].tolist() == steps.tolist() and len(set(steps.tolist())) > 2
    assert parts["n"].tolist() == [5.0 * s for s in steps.tolist()]


def tally() -> Visit:
    """Three times over its data: moves one leaf and passes on two, one its client's, one everyone's."""

    def begin(client: ClientContext) -> Any:
        return {
            "sum": client.mine["a"] * 1.0,
            "mine": client.mine["a"],
            "all": client.shared["s"],
            "square": torch.outer(client.mine["a"], client.shared["s"]),
        }

    def step(carry: Any, batch: Any, key: torch.Tensor) -> Any:
        moved = carry["sum"] * 0.5 + (batch["x"] * batch["w"][:, None]).sum(0) + carry["mine"] + carry["all"]
        return {**carry, "sum": moved, "square": carry["square"].T}

    return Visit(begin, [Phase(v.epochs(3), step)], lambda client, carry: (carry, client.own))


def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """How many clients each step is given from now on, and whether some of them have finished."""
    found: list[tuple[int, bool]] = []

    def counted(piece: Any, f: Any, *args: Any) -> Any:
        if isinstance(args[0], dict):
            found.append((len(args[0]["sum"]), len(args) == 4))
        return replay.call(piece, f, *args)

    monkeypatch.setattr(vmap, "call", counted)
    return found


@pytest.mark.parametrize("order", ["by work", "any", "one has nothing"])
def test_finished_clients_are_set_aside(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted by work, each step runs for those alone who are still at it; in any order the numbers are the loop's."""
    asked, by_work = widths(monkeypatch), sorted(range(12), key=lambda i: sizes()[i])
    ids = list(range(12)) if order == "any" else by_work
    visit, k = tally(), torch.arange(12 * 8, dtype=D).reshape(12, 8) / 100
    c = cohort(visit, ids)
    (p,) = c.phases
    if order == "one has nothing":
        p.active[0] = False
    payload = {"shared": {"s": torch.linspace(0, 1, 8, dtype=D)}, "mine": {"a": k}}
    (want, _, _), (got, _, steps) = (run(n, visit, c, **payload) for n in ("loop", "vmap"))
    assert steps.tolist() == p.active.sum(1).tolist() and len(set(steps.tolist())) > 3
    assert apart(want, got) <= 1e-12 and want["mine"].equal(k)
    if order == "any":
        assert any(masked for _, masked in asked)
    else:
        assert asked == [(n, False) for n in p.active.sum(0).tolist()]


def test_what_a_step_passes_on_is_not_copied() -> None:
    """Of a large shared leaf there is one, however many clients finish early."""
    c = cohort(tally(), sorted(range(12), key=lambda i: sizes()[i]))
    shared, a = {"s": torch.linspace(0, 1, 8, dtype=D)}, torch.ones(12, 8, dtype=D)
    ((_, parts, _, _),) = execute.execute_visit("vmap", tally(), c, shared, {"a": a}, {}, data())
    assert len(set(c.phases[0].active.sum(1).tolist())) > 2
    assert parts["all"].untyped_storage().nbytes() == shared["s"].nbytes and parts["all"].shape == (12, 8)
    assert parts["mine"].data_ptr() == a.data_ptr() and parts["sum"].data_ptr() != a.data_ptr()


def test_vmap_refuses_in_the_visits_own_words() -> None:
    visit = gather((v.once(),))._replace(vectorize="it looks into a dictionary")
    with pytest.raises(ValueError, match=r"^this visit cannot be vectorised: it looks into a dictionary$"):
        list(execute.execute_visit("vmap", visit, cohort(visit), {}, {}, {}, data()))
    assert run("loop", visit, cohort(visit))[0]["n"].tolist() == [float(sizes()[i]) for i in range(6)]
