"""Which executor runs which visit of a run."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from rayfed import execute, tree
from rayfed.execute.tuning import autotune
from rayfed.execute.tuning.kernels import Kernels
from rayfed.visits import Visit
from tests import toy
from tests.conformance.checks import close

# SCAFFOLD whose server also asks for something that reads values.
MIXED = """
    import torch

    from rayfed.fold import total
    from rayfed.methods.scaffold import Scaffold
    from rayfed.visits import Visit, visit
    from rayfed.wire import SCALAR, Part

    class Mixed(Scaffold):
        wire = Scaffold.wire._replace(up={**Scaffold.wire.up, "k": Part(SCALAR)})

        @visit
        def number(self, task):
            def end(client, carry):
                return {"k": torch.tensor(float(int(client.info.client)), dtype=task.dtype)}, client.own

            return Visit(lambda client: {}, (), end, vectorize="it reads the client's number")

        def round(self, state, fed, task):
            got = fed.ask(self.number, fed.sample(), fold=total("k"))
            fed.log("numbers", float(got.folded["k"]))
            return super().round(state, fed, task)
"""


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    file = tmp_path / "mixed.py"
    file.write_text(textwrap.dedent(MIXED))
    return f"{file}:Mixed"


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, bool]]:
    """(executor, whether the visit says why it cannot be vectorised) of all that is executed."""
    found: set[tuple[str, bool]] = set()
    real = execute.execute_visit

    def noted(executor: str, visit: Visit, *rest: Any) -> Any:
        found.add((executor, isinstance(visit.vectorize, str)))
        return real(executor, visit, *rest)

    monkeypatch.setattr(execute, "execute_visit", noted)
    return found


@pytest.mark.parametrize("executor", ["loop", "vmap", "debug"])
def test_only_a_visit_that_refuses_is_looped_in_a_run_that_vectorises(executor: str) -> None:
    visit = Visit(lambda client: {}, (), lambda client, carry: ({}, client.own))
    refuses = visit._replace(vectorize="no")
    assert execute.choose_executor(executor, visit) == executor
    assert execute.choose_executor(executor, refuses) == {"vmap": "loop"}.get(executor, executor)


def test_the_other_visits_are_vectorised_and_the_numbers_agree(mixed: str, executed: set[Any]) -> None:
    loop = toy.simulate(mixed, executor="loop", dtype="float64")
    executed.clear()
    both = toy.simulate(mixed, executor="vmap", dtype="float64")
    assert executed == {("vmap", False), ("loop", True)}
    close(loop.state, both.state, loop.initial, 1e-9, "server state")
    close(loop.clients(), both.clients(), loop.initial_clients(), 1e-9, "client states")
    assert (
        [r["numbers"] for r in loop.rows]
        == [r["numbers"] for r in both.rows]
        == [sum(d.ids) for d in both.fed.drawn[::2]]
    )


@pytest.mark.parametrize(("faster", "executor"), [("vmap", "auto"), ("loop", "auto"), ("vmap", "vmap")])
def test_a_run_says_which_visits_run_plainly_and_goes_on_so(
    mixed: str, faster: str, executor: str, executed: set[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"loop": 1.0, "vmap": 1.0, faster: 0.1, "kernels": {"loop": Kernels(), "vmap": Kernels()}}
    monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: dict(seconds))
    ran = toy.run_folder(mixed, tmp_path / "o", executor=executor, stop_after=1)
    again = toy.run_folder(mixed, tmp_path / "o", executor=faster, resume=True)
    assert ran.ending.status == "stopped" and again.ending.status == "done"
    assert executed == ({("vmap", False), ("loop", True)} if faster == "vmap" else {("loop", False), ("loop", True)})
    events = [json.loads(line) for line in (ran.folder.path / "events.jsonl").read_text().splitlines()]
    said = [(e["chosen"], e["plain"]) for e in events if e["kind"] == "executor"]
    plain = {"number": "it reads the client's number"}
    assert said == ([("vmap", plain)] * 2 if faster == "vmap" else [("loop", {})])
    whole = toy.run_folder(mixed, tmp_path / "whole", executor=faster)
    assert tree.same(whole.state, again.state)


def test_a_round_of_visits_that_run_plainly_is_as_long_as_under_loop(
    mixed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a round is short enough for one call is judged by what its visits take."""
    seconds = {"loop": 1.0, "vmap": 1e-6, "kernels": {"loop": Kernels(), "vmap": Kernels()}}
    monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: dict(seconds))
    for method, cohort in (("scaffold", 7), (mixed, 4)):
        c = toy.run_folder(method, tmp_path / method[-5:], executor="auto", rounds=1, resources={"cohort": "auto"})
        assert c.folder.config["resources"]["cohort"] == cohort
