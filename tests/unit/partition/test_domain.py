"""Partition kind domain."""

from __future__ import annotations

import numpy as np
import pytest

from rayfed import partition
from tests.unit.partition.blobs import DOMAINS, HOLD, conf, domain_counts


def test_clients_hold_one_domain_and_their_number_follows_the_rows() -> None:
    f = partition.build(conf(clients=13, partition={"kind": "domain"}, holdout=HOLD), DOMAINS)
    counts = domain_counts(f, DOMAINS)
    assert ((counts > 0).sum(1) == 1).all()
    clients, rows = (counts > 0).sum(0), counts.sum(0)
    assert np.abs(clients - 13 * rows / rows.sum()).max() < 1
    assert set(counts[:10].argmax(1)) == {0, 1, 2}  # every domain among those that train
    for k in range(3):
        assert np.ptp(counts[counts[:, k] > 0, k]) <= 1


def test_a_mixed_share_of_each_domain_goes_to_everybody() -> None:
    f = partition.build(conf(partition={"kind": "domain", "mixed": 0.5}), DOMAINS)
    counts = domain_counts(f, DOMAINS)
    rows = counts.sum(0)
    foreign = np.sort(counts, 1)[:, :-1].sum()
    everyone = np.round(0.5 * rows) / 10
    own = np.array([(counts.argmax(1) == k).sum() for k in range(3)])
    assert foreign == pytest.approx((everyone * (10 - own)).sum(), abs=10)
    assert np.abs(counts - everyone).min(1).max() <= 1
