"""Plans (who sees which examples when) and the three executors on visits of this file."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import execute, keys, tree
from rayfed import visits as v
from rayfed.config.schema import Local
from rayfed.execute import batches, debug, vmap
from rayfed.execute.batches import BatchSampler, Cohort, order_of
from rayfed.execute.debug import PieceFailed
from rayfed.execute.tuning import replay
from rayfed.task import Task
from rayfed.training import sgd_visit
from rayfed.visits import ClientContext, Over, Phase, Visit
from tests import toy

D = torch.float64
BATCH = 8


def sampler(batch: int = BATCH, seed: int = 1) -> BatchSampler:
    return BatchSampler(toy.federation(toy.config()), seed=seed, batch_size=batch, device="cpu", dtype=D)


def data() -> dict[str, torch.Tensor]:
    arrays = toy.federation(toy.config()).arrays
    return {n: torch.as_tensor(a.copy()).to(D) if a.dtype.kind == "f" else torch.tensor(a) for n, a in arrays.items()}


def cohort(
    visit: Visit, clients: Any = range(6), dispatch: int = 1, p: BatchSampler | None = None, lr: float = 0.1
) -> Cohort:
    return (p or sampler()).cohort(visit, tuple(clients), dispatch=dispatch, round=3, rounds=9, lr=lr)


def run(
    name: str, visit: Visit, c: Cohort, d: Any = None, shared: Any = None, mine: Any = None, own: Any = None
) -> Any:
    """(parts, own, steps) of all clients of the cohort, whatever pieces they come in."""
    got = list(
        execute.execute_visit(name, visit, c, shared or {}, mine or {}, own or {}, d if d is not None else data())
    )
    covered = [i for at, *_ in got for i in range(at.start, at.stop)]
    assert covered == list(range(len(c.clients)))
    return tuple(
        tree.map(lambda *xs: torch.cat([torch.as_tensor(x) for x in xs]), *piece) for piece in list(zip(*got))[1:]
    )


def over(*phases: Over) -> Visit:
    """A visit of these phases that does nothing; for its plan."""
    return Visit(lambda *a: {}, [Phase(o, lambda c, b, k: c) for o in phases], lambda client, carry: ({}, client.own))


def seen(p: batches.PhaseBatches, i: int) -> list[list[list[int]]]:
    """Rows of the data arrays that client number i meets: step by step, batch by batch, without padding."""
    steps = [t for t in range(p.active.shape[1]) if p.active[i, t]]
    assert steps == list(range(len(steps)))  # idle steps come last
    return [[p.rows[i, t, j][p.w[i, t, j] > 0].tolist() for j in range(p.rows.shape[2])] for t in steps]


def sizes() -> np.ndarray:
    return toy.federation(toy.config()).train.sizes()


def rows_of(c: int, split: str = "train") -> list[int]:
    return getattr(toy.federation(toy.config()), split)[c].tolist()


def flat(nested: list[list[list[int]]]) -> list[int]:
    return [r for step in nested for batch in step for r in batch]


# -- plans -------------------------------------------------------------------------------------------------------------


def test_the_toy_has_unequal_clients() -> None:
    assert len({math.ceil(n / BATCH) for n in sizes()[:6]}) > 2 and any(n % BATCH for n in sizes()[:6])


def test_epochs_show_every_example_once_per_pass() -> None:
    (p,) = cohort(over(v.epochs(3)), range(14)).phases
    for i in range(14):
        n = len(rows_of(i))
        got = seen(p, i)
        per = math.ceil(n / BATCH)
        assert len(got) == 3 * per
        passes = [flat(got[e * per : (e + 1) * per]) for e in range(3)]
        assert all(sorted(e) == rows_of(i) for e in passes)
        assert [len(s[0]) for s in got[:per]] == [BATCH] * (n // BATCH) + [n % BATCH] * (n % BATCH > 0)
        if n > 5:
            assert len({tuple(e) for e in passes}) == 3 and rows_of(i) not in passes  # a fresh order each


def test_steps_walk_over_reshuffled_passes() -> None:
    (p,) = cohort(over(v.steps(11)), range(14)).phases
    assert bool(p.active.all()) and p.active.shape == (14, 11)
    for i in range(14):
        n = len(rows_of(i))
        got, per = flat(seen(p, i)), math.ceil(n / BATCH)
        for e in range(11 // per):
            assert sorted(got[e * n : (e + 1) * n]) == rows_of(i)
        rest = got[11 // per * n :]
        assert len(set(rest)) == len(rest)  # the last pass is cut short, but repeats nothing


def test_steps_and_epochs_of_one_length_are_the_same_batches() -> None:
    c = int(np.argmax(sizes()[:12]))
    n = math.ceil(int(sizes()[c]) / BATCH)
    a = cohort(over(v.epochs(2)), (c,)).phases[0]
    b = cohort(over(v.steps(2 * n)), (c,)).phases[0]
    assert seen(a, 0) == seen(b, 0)


def test_once_and_whole_keep_the_storage_order() -> None:
    once, whole, test, nothing = cohort(over(v.once(), v.whole(), v.once("test"), v.nothing(4)), range(14)).phases
    for i in range(14):
        assert flat(seen(once, i)) == rows_of(i) and flat(seen(test, i)) == rows_of(i, "test")
        assert seen(whole, i) == [[rows_of(i)]]
    assert nothing.rows.shape == (14, 4, 1, 0) and bool(nothing.active.all())
    assert batches.gather(nothing, data())(0) == {}


def test_once_cuts_large_clients() -> None:
    at = order_of(300, v.once(), BATCH, 0)
    assert at.shape == (3, 1, 128) and at[at >= 0].tolist() == list(range(300))
    assert order_of(300, v.whole(), BATCH, 0).shape == (1, 1, 300)


def test_no_examples_no_steps() -> None:
    for o in (v.epochs(2), v.steps(3), v.once(), v.whole(), v.epochs(2, batches=2)):
        assert order_of(0, o, BATCH, 1).shape[:2] == (0, o.batches)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 40])
@pytest.mark.parametrize("o", [v.epochs(1, batches=2), v.epochs(3, batches=2), v.steps(5, batches=2)], ids=str)
def test_pairs_of_batches_are_the_single_ones_in_a_row(n: int, o: Over) -> None:
    pairs = order_of(n, o, BATCH, 77)
    count = o.n * 2 if o.kind == "steps" else o.n
    single = order_of(n, Over(o.kind, count), BATCH, 77)[:, 0]
    assert pairs.shape[1:] == (2, BATCH)
    flat_pairs = pairs.reshape(-1, BATCH)
    assert np.array_equal(flat_pairs[: len(single)], single)
    assert len(flat_pairs) == len(single) + len(single) % 2
    if len(single) % 2:  # the last pair borrows the first batch
        assert np.array_equal(flat_pairs[-1], single[0])


def test_a_small_client_fills_a_triple_of_batches() -> None:
    got = order_of(3, v.epochs(1, batches=3), BATCH, 5)
    assert got.shape == (1, 3, BATCH)
    assert all(sorted(b[b >= 0].tolist()) == [0, 1, 2] for b in got[0])


def test_the_order_follows_from_the_keys_alone() -> None:
    """Not from who else is in the cohort, nor from how large the others are; another dispatch, seed, phase or
    client has another order."""
    c = int(np.argmax(sizes()[:12]))
    o = v.epochs(2)
    alone = cohort(over(o), (c,)).phases[0]
    others = [i for i in range(12) if i != c][:4]
    at = cohort(over(o), (*others, c)).phases[0]
    assert seen(at, 4) == seen(alone, 0) and at.keys[4, : len(alone.keys[0])].equal(alone.keys[0])
    k = keys.key(1, 1, c, "order 0")
    steps = torch.arange(alone.active.shape[1])
    assert alone.keys[0].equal(keys.fold(torch.tensor(k), steps)) and len(set(alone.keys[0].tolist())) == len(steps)
    assert flat(seen(alone, 0)) == np.asarray(rows_of(c))[_valid(order_of(int(sizes()[c]), o, BATCH, k))].tolist()
    changed = [
        cohort(over(o), (c,), dispatch=2).phases[0],
        cohort(over(o), (c,), p=sampler(seed=2)).phases[0],
        cohort(over(o, o), (c,)).phases[1],
    ]
    orders = [flat(seen(p, 0)) for p in (alone, *changed)]
    assert len({tuple(o) for o in orders}) == 4 and len({int(p.keys[0, 0]) for p in (alone, *changed)}) == 4
    by_client = cohort(over(v.nothing(1)), range(12)).phases[0].keys
    assert len(set(by_client.flatten().tolist())) == 12


def _valid(at: np.ndarray) -> np.ndarray:
    return at[at >= 0]


def test_what_a_cohort_knows_of_its_clients() -> None:
    fed = toy.federation(toy.config())
    c = cohort(over(v.once()), (4, 2, 9), dispatch=5, lr=0.25)
    assert c.clients == (4, 2, 9) and c.info.client.tolist() == [4, 2, 9]
    assert c.info.examples.tolist() == [int(sizes()[i]) for i in (4, 2, 9)]
    assert np.array_equal(c.info.counts.numpy(), fed.class_counts[[4, 2, 9]])
    assert c.info.lr.tolist() == [0.25] * 3 and c.info.round.tolist() == [3] * 3 and c.info.rounds.tolist() == [9] * 3
    assert c.info.steps.tolist() == [0] * 3 and c.info.sum_lr.tolist() == [0.0] * 3
    assert set(c.info.secret.tolist()) == {keys.key(1, 5, -1, "secret among clients")}


def test_one_and_without_cut_cohorts() -> None:
    c = cohort(over(v.epochs(1), v.nothing(2)))
    for i in range(6):
        one = c.one(i)
        assert one.clients == (c.clients[i],) and one.info.client.tolist() == [c.clients[i]]
        assert bool(one.phases[0].active.all()) and seen(one.phases[0], 0) == seen(c.phases[0], i)
        assert one.phases[1].keys.equal(c.phases[1].keys[i : i + 1])
    rest, stay = c.without([0, 4])
    assert stay == [1, 2, 3, 5] and rest.clients == tuple(c.clients[i] for i in stay)
    assert [seen(rest.phases[0], j) for j in range(4)] == [seen(c.phases[0], i) for i in stay]
    assert rest.info.client.tolist() == list(rest.clients)


def test_pieces_of_the_pooled_test_set() -> None:
    fed = toy.federation(toy.config())
    many = dataclasses.replace(fed, pooled_test=np.arange(1200) % 380)
    p = BatchSampler(many, seed=1, batch_size=BATCH, device="cpu", dtype=D)
    assert [len(c) for c in p.pieces] == [512, 512, 176]
    assert np.concatenate([p.rows(i, "pooled") for i in range(3)]).tolist() == many.pooled_test.tolist()
    assert p.rows(0, "pooled 2").tolist() == p.rows(11, "pooled 2").tolist() == many.pooled_test[1024:].tolist()


# -- executors ---------------------------------------------------------------------------------------------------------


def gather(kinds: tuple[Over, ...], *, counts: bool = True) -> Visit:
    """Adds up what it is shown, weighted by step number, so that order, padding and idle steps all matter."""

    def begin(client: ClientContext) -> Any:
        return {"sum": torch.zeros(8, dtype=D), "n": torch.zeros((), dtype=D), "t": torch.zeros((), dtype=D)}

    def step(carry: Any, batch: Any, key: torch.Tensor) -> Any:
        several = batch if isinstance(batch, tuple) else (batch,)
        t = carry["t"] + 1
        total = sum((j + 1) * (b["x"] * b["w"][:, None]).sum(0) for j, b in enumerate(several))
        return {"sum": carry["sum"] + t * total, "n": carry["n"] + sum(b["w"].sum() for b in several), "t": t}

    def end(client: ClientContext, carry: Any) -> Any:
        return {**carry, "steps": client.info.steps, "sum_lr": client.info.sum_lr}, client.own

    return Visit(begin, [Phase(o, step, counts=counts) for o in kinds], end)


MIXES = {
    "epochs": (v.epochs(2),),
    "steps": (v.steps(7),),
    "pairs": (v.epochs(1, batches=2), v.steps(3, batches=2)),
    "mixed": (v.once(), v.epochs(1), v.whole("test"), v.steps(2)),
}


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


def noisy(local: Local, task: Task) -> Visit:
    """Two-phase training of this file's own: Adam, weight noise and dropout by key, a private state, a `mine`."""

    def loss(params: Any, batch: Any, key: torch.Tensor) -> torch.Tensor:
        keep = (keys.uniform(keys.fold(key, 1), (8,), D) < 0.8).to(D)
        noise = 0.01 * keys.normal(key, params["head.bias"].shape, D)
        return task.loss({**params, "head.bias": params["head.bias"] + noise}, {**batch, "x": batch["x"] * keep})

    def start(client: ClientContext) -> Any:
        drift = keys.normal(keys.fold(client.own["key"], client.info.round), client.own["bias"].shape, D)
        return {
            "model": {**client.shared["model"], "head.bias": client.own["bias"] + 0.01 * drift},
            "pull": client.mine["pull"],
        }

    def end(client: ClientContext, carry: Any) -> Any:
        sent = {
            "delta": tree.sub(carry["model"], client.shared["model"]),
            "secret": client.info.secret,
            "k": client.own["key"],
        }
        return sent, {**client.own, "bias": carry["model"]["head.bias"]}

    return sgd_visit(
        loss, local, start=start, end=end, hook=lambda g, carry: tree.add(g, carry["model"], carry["pull"]),
        phases=[(v.steps(3), lambda n: n.startswith("head")), (v.epochs(2), lambda n: not n.startswith("head"))],
    )  # fmt: skip


def noisy_run(name: str, d: Any = None, clients: Any = range(6), optimizer: str = "adam") -> Any:
    c = toy.config(dtype="float64", local={"optimizer": {"name": optimizer, "lr": 0.05, "weight_decay": 0.01}})
    task = Task(c, toy.federation(c))
    visit, ids = noisy(c.local, task), tuple(clients)
    own = {"key": torch.tensor([keys.key(1, 0, i, "own") for i in ids]), "bias": torch.zeros(len(ids), 4, dtype=D)}
    mine = {"pull": torch.tensor([0.01 * i for i in ids], dtype=D)}
    plans = cohort(visit, ids, lr=c.local.optimizer.lr)
    return run(name, visit, plans, d, {"model": task.initial}, mine, own)


def apart(a: Any, b: Any) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(tree.values(a), tree.values(b), strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_loop_is_vmap_on_noisy_training(optimizer: str) -> None:
    loop, vmap, dbg = (noisy_run(n, optimizer=optimizer) for n in ("loop", "vmap", "debug"))
    assert float(tree.norm(loop[0]["delta"])) > 0.1
    for a, b in zip(loop, vmap, strict=True):
        assert apart(a, b) <= 1e-9 * float(tree.norm(loop[0]["delta"]))
    assert all(tree.same(a, b) for a, b in zip(loop, dbg, strict=True))
    assert len({tuple(x.tolist()) for x in loop[1]["bias"]}) == 6  # each client has its own noise


def test_padding_reads_the_clients_own_rows() -> None:
    (p,) = cohort(over(v.epochs(2)), range(6)).phases
    assert not p.w.bool().all() and not p.active.all()
    for i in range(6):
        assert set(p.rows[i].flatten().tolist()) == set(rows_of(i))


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
    """Alone, or beside larger and smaller clients in any order: the same numbers."""
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
    """Three times over its data: moves one leaf and hands on two, one its client's, one everyone's."""

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
def test_who_has_finished_stands_aside(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_a_step_hands_on_is_not_copied() -> None:
    """Of a large shared leaf there is one, however many clients finish early."""
    c = cohort(tally(), sorted(range(12), key=lambda i: sizes()[i]))
    shared, a = {"s": torch.linspace(0, 1, 8, dtype=D)}, torch.ones(12, 8, dtype=D)
    ((_, parts, _, _),) = execute.execute_visit("vmap", tally(), c, shared, {"a": a}, {}, data())
    assert len(set(c.phases[0].active.sum(1).tolist())) > 2
    assert parts["all"].untyped_storage().nbytes() == shared["s"].nbytes and parts["all"].shape == (12, 8)
    assert parts["mine"].data_ptr() == a.data_ptr() and parts["sum"].data_ptr() != a.data_ptr()


@pytest.mark.parametrize("kinds", MIXES.values(), ids=MIXES)
def test_batches_are_the_same_gathered_at_once(kinds: tuple[Over, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    c, d = cohort(gather(kinds)), data()
    for p in c.phases:
        at_once = batches.gather(p, d)
        monkeypatch.setattr(batches, "AT_ONCE", 0)
        by_step = batches.gather(p, d)
        monkeypatch.undo()
        held = [f(0)[0] if isinstance(f(0), tuple) else f(0) for f in (at_once, by_step)]
        whole, step = (b["x"].untyped_storage().nbytes() for b in held)
        assert whole == step * p.active.shape[1]
        for t in range(p.active.shape[1]):
            for i in (0, 4):
                one, other = at_once(t, i), by_step(t, i)
                assert isinstance(one, tuple) == (p.rows.shape[2] > 1)
                several = one if isinstance(one, tuple) else (one,)
                for j, (a, b) in enumerate(zip(several, other if isinstance(other, tuple) else (other,), strict=True)):
                    assert a["w"].equal(p.w[i:, t, j]) and a["x"].equal(d["x"][p.rows[i:, t, j]])
                    assert tree.same(a, b)


def test_batches_have_the_same_strides_whatever_the_number_of_steps() -> None:
    """For a recording is for shapes and strides."""
    small, large = (batches.gather(cohort(over(v.steps(n))).phases[0], data()) for n in (2, 9))
    for a, b in zip(small(1, 2).values(), large(1, 2).values(), strict=True):
        assert a.shape == b.shape and a.stride() == b.stride()


def test_step_keys_are_fold_of_the_phase_key() -> None:
    def step(carry: Any, batch: Any, key: torch.Tensor) -> Any:
        return {"keys": torch.cat([carry["keys"][1:], key[None]])}

    visit = Visit(
        lambda *a: {"keys": torch.zeros(4, dtype=torch.int64)},
        [Phase(v.nothing(4), step)],
        lambda client, carry: (carry, client.own),
    )
    c = cohort(visit, (3, 7), dispatch=9)
    for name in ("loop", "vmap"):
        parts, _, _ = run(name, visit, c)
        for i, client in enumerate((3, 7)):
            k = torch.tensor(keys.key(1, 9, client, "order 0"))
            assert parts["keys"][i].tolist() == [int(keys.fold(k, t)) for t in range(4)]


def test_vmap_refuses_in_the_visits_own_words() -> None:
    visit = gather((v.once(),))._replace(vectorize="it looks into a dictionary")
    with pytest.raises(ValueError, match=r"^this visit cannot be vectorised: it looks into a dictionary$"):
        list(execute.execute_visit("vmap", visit, cohort(visit), {}, {}, {}, data()))
    assert run("loop", visit, cohort(visit))[0]["n"].tolist() == [float(sizes()[i]) for i in range(6)]


# -- debug -------------------------------------------------------------------------------------------------------------


def breaking(where: str) -> Visit:
    visit = gather((v.epochs(2),))
    step = visit.phases[0].step

    def begin(client: ClientContext) -> Any:
        if where == "begin" and int(client.info.client) == 4:
            raise ArithmeticError("boom")
        return visit.begin(client)

    def second(carry: Any, batch: Any, key: Any) -> Any:
        if where == "step" and float(carry["t"]) == 2:
            raise ArithmeticError("boom")
        return step(carry, batch, key)

    def end(client: ClientContext, carry: Any) -> Any:
        if where == "end":
            raise ArithmeticError("boom")
        return visit.end(client, carry)

    def enter(client: ClientContext, carry: Any) -> Any:
        if where == "enter":
            raise ArithmeticError("boom")
        return carry

    return Visit(begin, [Phase(v.once(), step), Phase(v.epochs(2), second, enter)], end)


def caught(where: str) -> PieceFailed:
    visit = breaking(where)
    shared = {"s": torch.arange(3.0)}
    with pytest.raises(PieceFailed) as told:
        list(debug.execute(visit, cohort(visit), shared, {"m": torch.arange(6.0)}, {}, data()))
    assert isinstance(told.value.__cause__, ArithmeticError)
    return told.value


def test_debug_keeps_what_the_failing_piece_was_given() -> None:
    begin = caught("begin")
    assert (begin.position, begin.stage) == (4, "begin")
    assert begin.arguments["info"]["client"] == 4 and begin.arguments["shared"]["s"].tolist() == [0, 1, 2]
    assert begin.arguments["mine"]["m"] == 4
    step = caught("step")
    assert (step.position, step.stage) == (0, "step 1 of phase 1")
    batch, carry = step.arguments["batch"], step.arguments["carry"]
    visit = breaking("step")
    rows = cohort(visit).phases[1].rows[0, 1, 0].numpy()
    assert isinstance(batch["x"], np.ndarray) and np.array_equal(batch["x"], data()["x"].numpy()[rows])
    assert carry["t"] == 2
    end = caught("end")
    assert end.stage == "end" and end.arguments["info"]["steps"] == 1 + 2 * math.ceil(int(sizes()[0]) / BATCH)
    for k in (begin, step, end):
        assert all(isinstance(x, np.ndarray) for x in tree.values(k.arguments))


def test_debug_names_enter() -> None:
    assert "enter" in caught("enter").stage


def test_debug_keeps_a_tuple_of_batches_as_a_tree() -> None:
    def step(carry: Any, batch: Any, key: Any) -> Any:
        raise ArithmeticError("boom")

    visit = Visit(lambda *a: {}, [Phase(v.steps(1, batches=2), step)], lambda *a: ({}, {}))
    with pytest.raises(PieceFailed) as told:
        list(debug.execute(visit, cohort(visit), {}, {}, {}, data()))
    assert set(told.value.arguments["batch"]) == {"0", "1"}
    assert told.value.arguments["batch"]["1"]["w"].shape == (BATCH,)


@pytest.mark.parametrize("name", ["loop", "debug"])
def test_what_looks_at_values_is_never_played(name):
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
