"""FRAG: sums and multiples of ciphertexts are exact, fewer than all shares open nothing, and only who searches sees scores."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import pytest
import torch

from rayfed.errors import ConfigError
from rayfed.methods._bases import encryption
from rayfed.methods._bases.encryption import Overflow, Packing
from rayfed.methods.frag import FRAG
from tests import toy

KEY, SHARES = encryption.dealt(5, 3, 128)
PLAIN = {"name": "frag", "queries": 2, "k": 3, "dims": 4, "scheme": "none"}
SMALL = {**PLAIN, "scheme": "paillier", "key_bits": 128}


def opened(c: int) -> int:
    return KEY.combined([KEY.partial(c, s) for s in SHARES])


def test_sums_and_multiples_are_exact_and_what_leaves_the_range_is_refused() -> None:
    rng, most = random.Random(1), KEY.n // 2 - 1
    for a, m in ((0, 7), (1, -1), (-41, 3), (most, 1), (-most, 1), (most // 9, -9)):
        c = KEY.encrypt(a, rng)
        assert opened(c) == a
        assert opened(KEY.weighted([c], [pow(c, -1, KEY.square)], [m])) == m * a
        assert opened(c * KEY.encrypt(-a, rng) % KEY.square) == 0
    with pytest.raises(Overflow):
        KEY.encrypt(KEY.n // 2 + 1, rng)
    with pytest.raises(Overflow):
        encryption.check_range(np.array([[3, 4], [0, 9]]), 2)
    one, two = KEY.encrypt(4, rng), KEY.encrypt(4, rng)
    assert len({one, two, KEY.again(one, rng)}) == 3 and opened(KEY.again(one, rng)) == 4


@pytest.mark.parametrize("left", [0, 1, 2])
def test_all_shares_but_one_open_nothing(left: int) -> None:
    c = KEY.encrypt(12, random.Random(2))
    with pytest.raises(ValueError, match="those of all parties are needed"):
        KEY.combined([KEY.partial(c, s) for i, s in enumerate(SHARES) if i != left])


def test_encrypted_inner_products_are_the_whole_numbers() -> None:
    draw, rng = np.random.default_rng(3), random.Random(3)
    q, rows = draw.integers(-9, 10, (2, 3)), draw.integers(-9, 10, (11, 3))
    packing = Packing.of(4, 128)
    made = encryption.score(KEY, packing, encryption.encrypt(KEY, q, rng), rows, rng)
    assert made.shape == (2, packing.ciphertexts(11), KEY.width) and packing.many == 11
    parts = np.stack([encryption.partials(KEY, made, s) for s in SHARES])
    np.testing.assert_array_equal(encryption.combined(KEY, packing, parts, 11), q @ rows.T)


def test_a_search_by_hand_and_who_is_sent_what() -> None:
    sent: list[tuple[str, tuple[int, ...], set[str]]] = []

    class Watched(toy.ToyFed):
        def ask(self, visit: Any, to: Any, **more: Any) -> Any:
            names = {*(more.get("shared") or {}), *(n for m in (more.get("mine") or {}).values() for n in m)}
            sent.append((visit.name, tuple(to), names))
            return super().ask(visit, to, **more)

    done = toy.simulate(SMALL, rounds=1, kind=Watched)
    f, method, fed = done.fed.federation, cast("FRAG", done.fed.method), done.fed
    drawn = fed.drawn[0].ids
    asker = next(c for c in drawn if len(f.test[c]))
    everyone = tuple(range(f.population))
    assert sent == [
        ("search", (asker,), {"public"}),
        ("score", drawn, {"public", "query"}),
        ("part", everyone, {"public", "scores"}),  # ciphertexts alone: no party sees a score
        ("open", (asker,), {"public", "scores", "parts"}),
    ]
    q = method.vectors(torch.as_tensor(f.arrays["x"][f.test[asker][:2]]))
    at = np.concatenate([f.train[c] for c in drawn])
    exact = q @ method.vectors(torch.as_tensor(f.arrays["x"][at])).T
    first = at[exact.argmax(1)]
    (row,) = done.rows
    assert row["search/recall"] == 1.0
    assert row["search/hit"] == np.mean(f.arrays["y"][first] == f.arrays["y"][f.test[asker][:2]])
    plain = toy.simulate(PLAIN, rounds=1).rows[0]
    assert {n: row[n] for n in row if n.startswith("search/")} == {n: plain[n] for n in row if n.startswith("search/")}
    assert row["bytes/up"] > 5 * plain["bytes/up"]


def test_bfv_finds_the_same_with_a_key_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    ts = pytest.importorskip("tenseal")
    done = toy.simulate({**PLAIN, "scheme": "bfv"}, rounds=1)
    plain = toy.simulate(PLAIN, rounds=1)
    assert {n: v for n, v in done.rows[0].items() if n.startswith("search/")} == {
        n: v for n, v in plain.rows[0].items() if n.startswith("search/")
    }
    public, secret = encryption.new_pair()
    assert not ts.context_from(encryption.taken(public)).has_secret_key()
    for values in ([[500, -511], [3, 0]], [[-512, 0]]):
        rows = np.array([[512, 0], [-1, 7], [0, 0]])
        made = encryption.bfv_score(public, encryption.bfv_encrypt(public, np.array(values), 3), rows, 3, len(values))
        np.testing.assert_array_equal(encryption.bfv_open(secret, made, 3, len(values)), np.array(values) @ rows.T)


def test_what_it_cannot_search_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "missing", lambda: "tenseal is not installed")
    with pytest.raises(ConfigError) as refused:
        toy.config({"name": "frag", "scheme": "bfv", "bits": 12, "key_bits": 256}, local={"clip": 1.0})
    said = "\n".join(refused.value.problems)
    for piece in ("method.scheme: bfv found", "method.bits: 12 found", "method.key_bits: 256 found", "local.clip: 1"):
        assert piece in said, said
