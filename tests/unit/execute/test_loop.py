"""One client after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import execute
from rayfed import visits as v
from rayfed.execute import loop
from rayfed.execute.tuning import replay
from rayfed.visits import Phase, Visit
from tests.unit.execute.cohorts import cohort, data, gather


@pytest.mark.parametrize("name", ["loop", "debug"])
def test_what_reads_values_is_never_played(name: str) -> None:
    """Its Python runs in every call: a recording would not see what NumPy does."""
    looked = []

    def step(carry: Any, batch: Any, key: Any) -> Any:
        looked.append(float(batch["x"].numpy().sum()))
        return {"sum": carry["sum"] + torch.tensor(looked[-1])}

    visit = Visit(
        lambda client: {"sum": torch.zeros(())},
        [Phase(v.once(), step)],
        lambda client, carry: (carry, client.own),
        vectorize="NumPy",
    )
    c = cohort(visit)
    for _ in range(6):
        list(execute.execute_visit(name, visit, c, {}, {}, {}, data()))
    assert len(looked) == 6 * int(c.phases[0].active.sum())


def test_a_watch_is_called_before_each_piece() -> None:
    """With what the piece gets, for one client; pieces then run as they are, which is what debugging wants."""
    visit = gather((v.steps(2), v.once("test")))
    entered = visit.phases[1]._replace(enter=lambda client, carry: {**carry, "t": carry["t"] * 0})
    visit = visit._replace(phases=[visit.phases[0], entered])
    seen: list[tuple[str, set[str]]] = []
    one = cohort(visit, (3,)).one(0)
    for _ in range(5):
        seen.clear()
        parts, own, steps = loop.execute_client(
            visit, one, {}, {}, {}, data(), lambda stage, given: seen.append((stage, set(given)))
        )
    client = {"info", "shared", "mine", "own"}
    assert seen == [
        ("begin", client),
        ("step 0 of phase 0", {"carry", "batch"}),
        ("step 1 of phase 0", {"carry", "batch"}),
        ("enter of phase 1", {*client, "carry"}),
        ("step 0 of phase 1", {"carry", "batch"}),
        ("end", {*client, "carry"}),
    ]
    assert parts["sum"].shape == (8,) and parts["t"] == 1 and steps == 3 and own == {}
    assert visit.begin not in replay._pieces
