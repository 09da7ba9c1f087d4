"""The planted groups as clusters."""

from __future__ import annotations

import torch

from rayfed import cluster
from rayfed.cluster import Evidence
from tests.unit.cluster.evidence import labels, of_signatures, unit, untouched


def test_oracle() -> None:
    planted = torch.tensor([2, 0, 2, 1])
    assert labels({"kind": "oracle"}, of_signatures(unit(4), lambda ids: planted[ids]), 1) == [0, 1, 0, 2]


def test_a_planted_group_keeps_the_id_of_its_members_present_or_not() -> None:
    groups = torch.tensor([2, 0, 2, 1, 0])
    e = Evidence(
        [0, 1],
        torch.zeros(2, 1),
        torch.ones(2, 2),
        lambda ids: groups[list(ids)],
        untouched,
        [3, 7],
        [-1, -1, 7, -1, 3],
    )
    assert cluster.make({"kind": "oracle"}).ids(e, 1) == {2: 7, 0: 3}
