"""The executors give the same numbers; which of them runs which visit of a run."""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import execute, keys, tree
from rayfed import visits as v
from rayfed.execute.batches import Cohort
from rayfed.execute.tuning import autotune
from rayfed.execute.tuning.autotune import Timing
from rayfed.execute.tuning.kernels import Kernels
from rayfed.visits import ClientContext, Phase, Visit
from tests import toy
from tests.conformance.checks import close
from tests.unit.execute.cohorts import (
    BATCH,
    MIXES,
    D,
    apart,
    cohort,
    data,
    gather,
    noisy_run,
    rows_of,
    run,
    seen,
    sizes,
)


@pytest.mark.parametrize("mix", MIXES)
def test_every_executor_shows_the_plan(mix: str) -> None:
    """Against the plan walked in NumPy: each client's own real batches, in order, and nothing else."""
    visit = gather(MIXES[mix])
    c, d = cohort(visit), data()
    x = d["x"].numpy()
    want = []
    for i in range(6):
        total, n, t = np.zeros(8), 0, 0
        for p in c.phases:
            for step in seen(p, i):
                t += 1
                total += t * sum((j + 1) * x[rows].sum(0) for j, rows in enumerate(step))
                n += sum(len(rows) for rows in step)
        want.append((total, n, t))
    for name in ("loop", "vmap", "debug"):
        parts, _, steps = run(name, visit, c, d)
        assert np.allclose(parts["sum"].numpy(), np.stack([w[0] for w in want]), rtol=0, atol=1e-10), name
        assert parts["n"].tolist() == [w[1] for w in want]
        assert parts["t"].tolist() == parts["steps"].tolist() == steps.tolist() == [w[2] for w in want]
        assert parts["sum_lr"].tolist() == pytest.approx([0.1 * w[2] for w in want], rel=1e-12)


@pytest.mark.parametrize("name", ["loop", "vmap", "debug"])
def test_measuring_phases_are_no_training_steps(name: str) -> None:
    visit = gather((v.epochs(1),))
    first = visit.phases[0]
    mixed = visit._replace(phases=[first._replace(counts=False), first, first._replace(over=v.once(), counts=False)])
    c = cohort(mixed)
    parts, _, steps = run(name, mixed, c)
    assert steps.tolist() == parts["steps"].tolist() == [math.ceil(int(sizes()[i]) / BATCH) for i in range(6)]
    assert all(t > s for t, s in zip(parts["t"].tolist(), steps.tolist(), strict=True))
    assert parts["sum_lr"].tolist() == pytest.approx([0.1 * s for s in steps.tolist()])
    _, _, none = run(name, gather((v.epochs(1),), counts=False), _cut(c))
    assert none.tolist() == [0] * 6


def _cut(c: Cohort) -> Cohort:
    return Cohort(c.clients, c.info, c.phases[:1], c.dtype)


@pytest.mark.parametrize("name", ["loop", "vmap", "debug"])
def test_enter_reshapes_the_carry_once_before_its_phase(name: str) -> None:
    def first(client: ClientContext, carry: Any) -> Any:
        return {"log": carry["log"] * 10 + 1, "steps": client.info.steps}

    def second(client: ClientContext, carry: Any) -> Any:
        return {
            "log": carry["log"] * 10 + 2 + 0 * client.mine["m"] + 0 * client.own["o"] + 0 * client.shared["s"],
            "steps": client.info.steps,
        }

    def tick(carry: Any, batch: Any, key: Any) -> Any:
        return {**carry, "log": carry["log"] * 10 + 7}

    visit = Visit(
        lambda client: {"log": torch.zeros((), dtype=D)},
        [Phase(v.nothing(2), tick, first), Phase(v.nothing(1), tick, second), Phase(v.nothing(1), tick)],
        lambda client, carry: (carry, client.own),
    )
    k = torch.arange(6, dtype=D)
    parts, own, steps = run(
        name, visit, cohort(visit), shared={"s": torch.ones((), dtype=D)}, mine={"m": k}, own={"o": k}
    )
    assert parts["log"].tolist() == [177277.0] * 6
    assert (
        parts["steps"].tolist() == [2] * 6 and steps.tolist() == [4] * 6
    )  # as the second phase saw them, and at the end
    assert own["o"].tolist() == k.tolist()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_loop_is_vmap_on_noisy_training(optimizer: str) -> None:
    loop, vmap, dbg = (noisy_run(n, optimizer=optimizer) for n in ("loop", "vmap", "debug"))
    assert float(tree.norm(loop[0]["delta"])) > 0.1
    for a, b in zip(loop, vmap, strict=True):
        assert apart(a, b) <= 1e-9 * float(tree.norm(loop[0]["delta"]))
    assert all(tree.same(a, b) for a, b in zip(loop, dbg, strict=True))
    assert len({tuple(x.tolist()) for x in loop[1]["bias"]}) == 6  # each client has its own noise


@pytest.mark.parametrize("name", ["loop", "vmap"])
def test_other_peoples_rows_and_padding_have_no_influence(name: str) -> None:
    """Wild numbers in every row that is not client 2's (row 0, which padding points at, included) change no bit of it."""
    mine = rows_of(2)
    assert 0 not in mine and len(mine) % BATCH
    d, wild = data(), data()
    others = torch.ones(len(d["y"]), dtype=torch.bool)
    others[mine] = False
    wild["x"][others] = 1e3 * torch.randn(int(others.sum()), 8, dtype=D, generator=keys.torch_generator(1))
    wild["y"][others] = 3 - wild["y"][others]
    a, b = noisy_run(name, d), noisy_run(name, wild)
    for x, y in zip(a, b, strict=True):
        assert tree.same(tree.pick(x, 2), tree.pick(y, 2)), name
    assert not tree.same(tree.pick(a[0], 3), tree.pick(b[0], 3))


@pytest.mark.parametrize("name", ["loop", "vmap"])
def test_the_company_has_no_influence(name: str) -> None:
    """Alone, or together with larger and smaller clients in any order: the same numbers."""
    full = noisy_run(name)
    for ids in ((2,), (5, 2, 0), (2, int(np.argmax(sizes()[:12])))):
        less = noisy_run(name, clients=ids)
        at = ids.index(2)
        for x, y in zip(full, less, strict=True):
            assert apart(tree.pick(x, 2), tree.pick(y, at)) <= 1e-12


@pytest.mark.parametrize("name", ["loop", "vmap"])
def test_a_nan_in_the_data_stays_with_its_owner(name: str) -> None:
    d = data()
    d["x"][0] = math.nan
    (owner,) = [i for i in range(14) if 0 in rows_of(i)]
    others = [i for i in range(12) if i != owner][:4]
    parts, _, _ = noisy_run(name, d, clients=others)
    assert tree.finite(parts)


# -- an executor per visit --------------------------------------------------------------------------------------------------

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
    """(executor, whether the visit says why it cannot be vectorised) of all that clients execute."""
    found: set[tuple[str, bool]] = set()
    real = execute.execute_visit

    def noted(executor: str, visit: Visit, *rest: Any) -> Any:
        if [p.over.split for p in visit.phases] != ["rows"]:  # pieces of rows are no client's, and run one by one
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
    timing = Timing({"loop": 1.0, "vmap": 1.0, faster: 0.1}, {"loop": Kernels(), "vmap": Kernels()})
    monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: timing)
    ran = toy.run_folder(mixed, tmp_path / "o", executor=executor, stop_after=1)
    again = toy.run_folder(mixed, tmp_path / "o", executor=faster, resume=True)
    assert ran.ending.status == "stopped" and again.ending.status == "done"
    assert executed == ({("vmap", False), ("loop", True)} if faster == "vmap" else {("loop", False), ("loop", True)})
    events = [json.loads(line) for line in (ran.folder.path / "events.jsonl").read_text().splitlines()]
    said = [(e["chosen"], e["plain"]) for e in events if e["kind"] == "executor"]
    plain = {"number": "it reads the client's number"}
    assert said == [("vmap", plain) if faster == "vmap" else ("loop", {})] * 2
    whole = toy.run_folder(mixed, tmp_path / "whole", executor=faster)
    assert tree.same(whole.state, again.state)


def test_a_round_of_visits_that_run_plainly_is_as_long_as_under_loop(
    mixed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a round is short enough for one call is judged by what its visits take."""
    timing = Timing({"loop": 1.0, "vmap": 1e-6}, {"loop": Kernels(), "vmap": Kernels()})
    monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: timing)
    for method, size in (("scaffold", 7), (mixed, 4)):
        c = toy.run_folder(method, tmp_path / method[-5:], executor="auto", rounds=1, resources={"cohort": "auto"})
        assert c.folder.config["resources"]["cohort"] == size
