"""Pairwise masks: the server learns the clients' sum, and nothing of a single update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from rayfed import keys
from rayfed.lazy import torch
from rayfed.transform import Transform, TransformSettings

if TYPE_CHECKING:
    from torch import Tensor


class Mask(Transform):
    """Secure aggregation: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning". Client i
    sends, modulo 2^bits,
        y_i = w_i c_i + b_i + sum over its neighbours j > i of p_ij - sum over its neighbours j < i of p_ij,
    c_i the levels of `quantise` with a range, w_i its weight, b_i its own mask, p_ij = p_ji one that the pair shares. In the sum
    the pairs' masks cancel; the server takes off b_i of those who replied and p_ij between those who did and those who did not,
    which in a deployment it gets from shares of the keys. What is left is the exact sum of w_i c_i, whoever dropped out.
    `neighbours: k` pairs each client with k others in a random order (Bell et al. 2020, "Secure Single-Server Aggregation with
    (Poly)Logarithmic Overhead"), null with all.

    Simulated: masks are drawn from the run's seed by a generator that is not cryptographic, and no key is agreed or shared. Sent:
    `bits` for each entry; keys and shares are not counted.
    """

    class Settings(TransformSettings):
        bits: int = Field(32, ge=8, le=62, description="Sums are modulo 2^bits; they must fit.")
        neighbours: int | None = Field(None, ge=2, description="Clients that each one shares masks with; null for all.")
        threshold: float = Field(
            0.5, gt=0, le=1, description="Least share of the asked clients that must reply for the sum to be opened."
        )

    place = "mask"

    def size(self, n: int, bits: int, pieces: object) -> tuple[int, int, int]:
        return n, self.settings.bits, 0

    def hide(self, values: Tensor, clients: Sequence[int], everyone: Sequence[int], common: int) -> Tensor:
        """Return whole numbers of clients, (c, d) int64, with their masks; everyone: all who were asked."""
        pairs = self._neighbours(everyone, common)
        hidden = [
            v + _drawn(common, c, c, v) + sum(_sign(c, other) * _drawn(common, c, other, v) for other in pairs[c])
            for v, c in zip(values, clients, strict=True)
        ]
        return torch.stack(hidden) & self._modulus

    def open(self, total: Tensor, replied: Sequence[int], everyone: Sequence[int], common: int) -> Tensor:
        """Return the sum of the values, (d,) int64, of the sum of what `hide` made of them for those who replied."""
        pairs, there = self._neighbours(everyone, common), set(replied)
        for c in sorted(there):
            total = total - _drawn(common, c, c, total)
            for gone in (other for other in pairs[c] if other not in there):
                total = total - _sign(c, gone) * _drawn(common, c, gone, total)
        total = total & self._modulus
        return torch.where(total > self._modulus // 2, total - (self._modulus + 1), total)

    def least(self, asked: int) -> int:
        """Return how many of the asked clients must reply."""
        return math.ceil(self.settings.threshold * asked)

    def needs_bits(self, largest: float) -> int:
        """Return the bits that sums of whole numbers up to a magnitude need."""
        return math.ceil(math.log2(2 * max(largest, 1) + 1))

    @property
    def _modulus(self) -> int:
        """Return 2^bits - 1."""
        return (1 << self.settings.bits) - 1

    def _neighbours(self, everyone: Sequence[int], common: int) -> dict[int, list[int]]:
        """Return client -> those it shares masks with, on a ring in an order drawn for the ask."""
        asked, k = sorted(everyone), self.settings.neighbours
        if k is None or k >= len(asked) - 1:
            return {c: [o for o in asked if o != c] for c in asked}
        ring = np.asarray(asked)[keys.numpy(common).permutation(len(asked))].tolist()
        half = math.ceil(k / 2)
        steps = [s for s in range(-half, half + 1) if s]
        return {c: sorted({ring[(i + s) % len(ring)] for s in steps} - {c}) for i, c in enumerate(ring)}


def _sign(client: int, other: int) -> int:
    return 1 if other > client else -1


def _drawn(common: int, a: int, b: int, like: Tensor) -> Tensor:
    """Return the mask of a pair, or of a client by itself, (d,) int64 of 64 random bits."""
    key = torch.tensor(common, device=like.device)
    return keys.bits(keys.fold(keys.fold(key, min(a, b) + 1), max(a, b) + 1), like.shape)
