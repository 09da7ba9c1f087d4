"""Who attacks, what is refused, and what attacks on data leave of a split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import attack, partition
from rayfed.errors import ConfigError
from rayfed.partition import Federation
from tests import toy
from tests.configs import good, the_problem

KINDS = {
    "label_flip": {}, "trigger": {"target": 0}, "sign": {}, "scale": {}, "noise": {}, "rank_reversal": {}, "little_is_enough": {},
    "inner_product": {}, "canary": {}, "corrupt": {},
}  # fmt: skip


def attackers(of: Any, **federation: Any) -> list[int]:
    c = good(attacks=[{"kind": "sign", "clients": of}], federation=federation)
    return attack.attackers(c, attack.of(c)[0]).tolist()


def test_every_kind_is_made_by_config() -> None:
    assert attack.KINDS.names() == sorted(KINDS)
    for kind, settings in KINDS.items():
        (made,) = attack.of(good(attacks=[{"kind": kind, "clients": 0.1, **settings}]))
        assert made.place in ("data", "update", "craft") and made.__doc__


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    assert len(attackers(0.1)) == 6 and len(attackers(18)) == 18
    assert set(attackers(6)) == set(attackers(0.1)) < set(attackers(18)) < set(range(60))
    assert attackers(0.0) == attackers(0) == [] and len(attackers(0.001)) == 1
    assert attackers([7, 3]) == [3, 7]


def test_held_out_clients_do_not_attack() -> None:
    held = {"clients": 20, "holdout": {"kind": "clients", "fraction": 0.5}}
    assert set(attackers(9, **held)) < set(range(10))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "attacks=[sing]",
            "attacks.0.kind: 'sing' found (did you mean 'sign'?), allowed: canary, corrupt, inner_product, label_flip, ",
        ),
        ("attacks=[sign]", "attacks.0.clients: missing"),
        ("attacks=3", "attacks: 3 found"),
        (
            "attacks=[{kind: sign, clients: 1.5}]",
            "attacks.0.clients: 1.5 found, allowed: a share in [0, 1), a whole number >= 0",
        ),
        ("attacks=[{kind: sign, clients: [1, 1]}]", "attacks.0.clients: [1, 1] found, allowed: different ids >= 0"),
        (
            "attacks=[{kind: sign, clients: [58]}]",
            "attacks.0.clients: 58 found, it is held out (54 to 59 are); allowed: 0 to 53",
        ),
        (
            "attacks=[{kind: sign, clients: [99]}]",
            "attacks.0.clients: 99 found, there is no such client; allowed: 0 to 53",
        ),
        (
            "attacks=[{kind: sign, clients: 54}]",
            "attacks.0.clients: 54 found, one client at least is honest; allowed: at most 53",
        ),
        ("attacks=[{kind: sign, clients: 1, size: 2}]", "attacks.0.size: unknown key; known: clients, strength"),
        (
            "attacks=[{kind: little_is_enough, clients: 2}, {kind: inner_product, clients: 2}]",
            "attacks: little_is_enough and inner_product found, attackers agree on one update; allowed: one of them",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(change: str, sentence: str) -> None:
    assert the_problem(change, "federation.holdout.kind=clients").startswith(sentence)


def test_updates_of_a_method_that_sends_none_cannot_be_attacked() -> None:
    sentence = the_problem("attacks=[{kind: sign, clients: 1}]", "method=local_only")
    assert sentence == "attacks.0.kind: sign found, but local_only sends no update; allowed: attacks on data"
    assert good(attacks=[{"kind": "label_flip", "clients": 1}], method="local_only")


# -- data ----------------------------------------------------------------------------------------------------------------


def split(*attacks: Any, **more: Any) -> Federation:
    return partition.build(toy.config(attacks=list(attacks), **more))


def test_only_attackers_training_labels_are_flipped() -> None:
    clean, flipped = split(), split({"kind": "label_flip", "clients": [3, 5]})
    theirs = np.concatenate([clean.train[3], clean.train[5]])
    others = np.setdiff1d(np.arange(len(clean.arrays["y"])), theirs)
    assert (flipped.arrays["y"][theirs] == 3 - clean.arrays["y"][theirs]).all()
    assert (flipped.arrays["y"][others] == clean.arrays["y"][others]).all()
    assert (flipped.arrays["x"] == clean.arrays["x"]).all() and flipped.backdoor is None
    assert flipped.class_counts[3].tolist() == clean.class_counts[3][::-1].tolist()
    assert flipped.digest() != clean.digest()


def test_honest_clients_test_rows_are_marked_and_copied() -> None:
    clean, marked = split(), split({"kind": "trigger", "clients": [3, 5], "target": 1, "size": 2})
    n = len(clean.arrays["y"])
    assert marked.backdoor is not None and len(marked.backdoor) == 14
    high = clean.arrays["x"].max()
    for c in range(14):
        rows = marked.backdoor[c]
        source = clean.test[c][clean.arrays["y"][clean.test[c]] != 1]
        if c in (3, 5) or c >= 12:  # attackers, and the held-out ones
            assert not len(rows)
            continue
        assert len(rows) == len(source) and (rows >= n).all() and (marked.arrays["y"][rows] == 1).all()
        assert (marked.arrays["x"][rows][:, -2:] == high).all()
        assert (marked.arrays["x"][rows][:, :-2] == clean.arrays["x"][source][:, :-2]).all()
    assert (marked.arrays["x"][clean.pooled_test] == clean.arrays["x"][clean.pooled_test]).all()
    again = Federation.from_numpy(marked.numpy())
    assert (
        again.backdoor is not None
        and (again.backdoor.rows == marked.backdoor.rows).all()
        and again.digest() == marked.digest()
    )


def test_a_class_that_is_not_there_is_refused_with_the_data() -> None:
    with pytest.raises(ConfigError, match=r"attacks\.0\.target: 4 found, allowed: 0 to 3"):
        split({"kind": "trigger", "clients": 1, "target": 4})


def test_without_attacks_a_split_is_what_it_was() -> None:
    assert (
        split().digest()
        == split({"kind": "sign", "clients": 2}).digest()
        == split({"kind": "label_flip", "clients": 0}).digest()
    )


def test_labels_that_are_given_stay_as_they_were() -> None:
    c = toy.config(attacks=[{"kind": "label_flip", "clients": [0]}])
    x, y = np.zeros((4, 2)), np.array([0, 1, 2, 3])
    rows = [np.array([0, 1]), *([np.array([2, 3])] * 11)]
    made = attack.poison(c, x, y, rows, rows, "tabular", 4)
    assert made.y.tolist() == [3, 2, 2, 3] and y.tolist() == [0, 1, 2, 3]
