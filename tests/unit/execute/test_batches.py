"""Which examples each step of each client sees: drawn from keys, padded, gathered."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import keys, tree
from rayfed import visits as v
from rayfed.execute import batches
from rayfed.execute.batches import BatchSampler, order_of
from rayfed.visits import Over, Phase, Visit
from tests import toy
from tests.unit.execute.cohorts import (
    BATCH,
    MIXES,
    D,
    cohort,
    data,
    flat,
    gather,
    over,
    rows_of,
    run,
    sampler,
    seen,
    sizes,
)


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
    assert np.concatenate([p.rows(0, f"pooled {i}") for i in range(3)]).tolist() == many.pooled_test.tolist()
    assert p.rows(0, "pooled 2").tolist() == p.rows(11, "pooled 2").tolist() == many.pooled_test[1024:].tolist()


def test_rows_that_one_model_is_scored_on_come_in_even_pieces() -> None:
    """Of one width, in order, an even number of several, as long as the model's work allows; the last row fills the end."""
    network = SimpleNamespace(kind="tabular", input_shape=(8,), size=10_000)
    texts = SimpleNamespace(kind="text", input_shape=(64,), size=22_000_000)
    for task, most in ((network, batches.MOST), (texts, batches.FEWEST)):
        for n in (1, 63, 64, 65, 128, 129, 520, 1024, 1025, 3000, 12_345):
            rows = np.arange(n) * 3
            pieces = batches.scored_pieces(rows, task)
            count, width = pieces.shape
            assert width <= most and (count == 1 or count % 2 == 0) and pieces.size - n < count
            assert pieces.reshape(-1)[:n].tolist() == rows.tolist() and set(pieces.reshape(-1)[n:]) <= {rows[-1]}
            assert count <= math.ceil(n / most) + 1, "as few as possible"
    pictures = SimpleNamespace(kind="image", input_shape=(3, 224, 224), size=1000)
    assert batches.scored_pieces(np.arange(640), pictures).shape == (10, batches.FEWEST), (
        "convolutions use weights often"
    )


def test_rows_that_are_given_stand_in_the_place_of_a_clients_own() -> None:
    given = np.array([[7, 7, 3], [1, 2, 0]])
    sampler = BatchSampler(toy.federation(toy.config()), seed=1, batch_size=BATCH, device="cpu", dtype=D)
    one = over(v.whole("rows"))
    c = sampler.cohort(one, (40, 2), dispatch=1, round=1, rounds=1, lr=0.1, given=given)
    assert c.phases[0].rows.tolist() == [[[[7, 7, 3]]], [[[1, 2, 0]]]] and bool(c.phases[0].w.bool().all())


def test_padding_reads_the_clients_own_rows() -> None:
    (p,) = cohort(over(v.epochs(2)), range(6)).phases
    assert not p.w.bool().all() and not p.active.all()
    for i in range(6):
        assert set(p.rows[i].flatten().tolist()) == set(rows_of(i))


@pytest.mark.parametrize("kinds", MIXES.values(), ids=MIXES)
def test_batches_are_the_same_gathered_at_once(kinds: tuple[Over, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    c, d = cohort(gather(kinds)), data()
    for p in c.phases:
        at_once = batches.gather(p, d)
        monkeypatch.setattr(batches, "GATHER_LIMIT", 0)
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
