"""Every client is its own cluster."""

from __future__ import annotations

from tests.unit.cluster.evidence import labels, of_signatures, unit


def test_singletons() -> None:
    assert labels({"kind": "singletons"}, of_signatures(unit(4)), 1) == [0, 1, 2, 3]
