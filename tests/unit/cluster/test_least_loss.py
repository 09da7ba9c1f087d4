"""The expert with the least loss, and ids that stay."""

from __future__ import annotations

import pytest
import torch

from rayfed import cluster
from rayfed.cluster import MISSING
from tests.unit.cluster.evidence import labels, of_signatures, unit


def test_least_loss_takes_the_least() -> None:
    losses = torch.tensor([[0.3, 0.2, 0.9], [0.1, 0.2, 0.3], [0.5, 0.5, 0.4], [1.0, 0.7, 0.8]])
    replies = dict(enumerate(losses))
    e, kind = of_signatures(unit(4), losses=lambda: replies, known=[4, 5, 9]), cluster.make({"kind": "least_loss"})
    assert kind.labels(e, 3).tolist() == [1, 0, 2, 1]
    assert kind.ids(e, 3) == {0: 4, 1: 5, 2: 9} and kind.ids(e, 4) is None
    del replies[0], replies[2]
    assert kind.labels(e, 3).tolist() == [MISSING, 0, MISSING, 1]


@pytest.mark.parametrize("known", [None, 2])
def test_least_loss_clusters_signatures_while_experts_are_missing(known: int | None) -> None:
    e = of_signatures(unit(8), known=range(known or 0))  # losses are not even asked for
    assert labels({"kind": "least_loss", "linkage": "single"}, e, 3) == labels({"linkage": "single"}, e, 3)
