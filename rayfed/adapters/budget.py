"""What fits on a device: ranks of each adapted layer and bits of the frozen weights, by memory and time.

A step's work is counted in multiplications for a token: 4 for each frozen entry (forwards, and backwards to its input), 6 for each
entry of an adapter. `devices` says how many full steps a device does in a second, all layers at the largest rank. Times are
simulated, and never measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PRECISIONS = (16, 8, 4)  # bits of a frozen weight
OPTIMIZER = 16  # bytes of each trained entry in training: itself, its gradient and Adam's two


class Network(NamedTuple):
    """What is counted of a network.

    sizes: entries of one rank of each adapted layer's factors, (L,); quantised, other: frozen entries that have few bits, and the others
    (16); head: trained entries beside the adapters; activations: bytes that a step keeps.
    """

    sizes: np.ndarray
    quantised: int
    other: int
    head: int
    activations: int


class Limits(NamedTuple):
    """What a client may spend. memory: bytes; seconds: of a visit; steps: of it; speed: full steps a second; bandwidth: bytes a second."""

    memory: float = math.inf
    seconds: float = math.inf
    steps: float = 1.0
    speed: float = math.inf
    bandwidth: float = math.inf


class Plan(NamedTuple):
    """What a client trains, and what that spends. ranks: (L,) int64; bits: of the frozen weights."""

    ranks: np.ndarray
    bits: int
    memory: float
    seconds: float


def memory(net: Network, ranks: np.ndarray, bits: int) -> float:
    """Return the bytes of a step."""
    frozen = net.quantised * bits / 8 + net.other * 2
    return float(frozen + OPTIMIZER * (int(ranks @ net.sizes) + net.head) + net.activations)


def seconds(net: Network, ranks: np.ndarray, limits: Limits, most: int) -> float:
    """Return the simulated seconds of a visit: its steps, and what it trains each way in four bytes an entry. most: the largest rank."""
    base, trained = 4 * (net.quantised + net.other), int(ranks @ net.sizes) + net.head
    whole = base + 6 * (most * int(net.sizes.sum()) + net.head)
    return float(limits.steps / limits.speed * (base + 6 * trained) / whole + 2 * 4 * trained / limits.bandwidth)


def planned(
    net: Network, limits: Limits, value: Sequence[float], most: int, precisions: Sequence[int] = PRECISIONS
) -> Plan | None:
    """Return the plan of a client: of the largest precision that leaves room for one rank of the most valuable layer, ranks of 0 to `most`
    added one by one, by value over size, until a limit is met; None where nothing fits.

    value: of a rank of each layer, (L,). The order does not depend on the limits, so that a larger budget never gives less.
    """

    def fits(ranks: np.ndarray, bits: int) -> bool:
        return memory(net, ranks, bits) <= limits.memory and seconds(net, ranks, limits, most) <= limits.seconds

    ranks = np.zeros(len(net.sizes), np.int64)
    order = sorted(range(len(ranks)), key=lambda at: (-value[at] / net.sizes[at], at))
    ranks[order[0]] = 1
    bits = next((b for b in sorted(precisions, reverse=True) if fits(ranks, b)), None)
    if bits is None:
        return None
    for at in order:
        while ranks[at] < most:
            ranks[at] += 1
            if not fits(ranks, bits):
                ranks[at] -= 1
                return Plan(ranks, bits, memory(net, ranks, bits), seconds(net, ranks, limits, most))
    return Plan(ranks, bits, memory(net, ranks, bits), seconds(net, ranks, limits, most))
