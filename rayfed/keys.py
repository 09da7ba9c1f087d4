"""Randomness by address: every draw is a function of (seed, dispatch, client, purpose), never of call order.

On the server a key is a Python int of 63 bits. Inside a visit it is a 0-d int64 tensor, so that one `vmap` call serves
clients with different keys; `uniform`, `normal` and `fold` are a counter-based generator (SplitMix64's finaliser over
key + counter) made of element-wise integer operations, equal under `loop` and `vmap`.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

X = TypeVar("X", "Tensor", np.ndarray)  # int64

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64 bit, which is what tensors hold
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def key(seed: int, dispatch: int, client: int, purpose: str) -> int:
    """Return the 63-bit key of one purpose of one client in one dispatch; `client` -1 is the server."""
    h = hashlib.blake2b(f"{seed}/{dispatch}/{client}/{purpose}".encode(), digest_size=8)
    return int.from_bytes(h.digest(), "little") >> 1


def numpy(k: int) -> np.random.Generator:
    """Return a NumPy generator for key `k` (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=k))


def proportional(weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return a kind for each of n things, (n,) int64: exact counts in the proportion of `weights` (largest remainders), shuffled."""
    p = weights / weights.sum() * n
    whole = np.floor(p).astype(int)
    rest = np.argsort(whole - p, kind="stable")[: n - whole.sum()]
    whole[rest] += 1
    return rng.permutation(np.repeat(np.arange(len(p)), whole))


_here = threading.local()


def numpy_again(k: int) -> np.random.Generator:
    """Return what `numpy` returns, for many keys one after the other: the thread's one generator, set to `k`, at a fifth of the
    cost. It draws for `k` only until the next call."""
    try:
        generator, state, first = _here.known
    except AttributeError:
        generator, zeros = np.random.Generator(np.random.Philox(key=0)), np.zeros(4, np.uint64)
        first = np.zeros(2, np.uint64)
        state = {
            "bit_generator": "Philox", "state": {"counter": zeros, "key": first},
            "buffer": zeros, "buffer_pos": 4, "has_uint32": 0, "uinteger": 0,
        }  # fmt: skip
        _here.known = generator, state, first
    first[0] = k
    generator.bit_generator.state = state
    return generator


def torch_generator(k: int, device: str = "cpu") -> torch.Generator:
    """Return a torch generator for key `k`, for server-side draws."""
    g = torch.Generator(device=device)
    g.manual_seed(k)
    return g


def _shift(x: X, n: int) -> X:
    """Return the logical right shift of int64 (torch's is arithmetic)."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _mix(x: X) -> X:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def fold(k: X, n: int | X) -> X:
    """Return a new key from key `k` (0-d int64, or many) and a number."""
    if isinstance(n, int):  # wrapped by hand: a Python product can leave 64 bits
        return _mix(_mix(k + _GOLDEN) + ((n * _GOLDEN + (1 << 63)) % (1 << 64) - (1 << 63)))
    return _mix(_mix(k + _GOLDEN) + n * _GOLDEN)


def bits(k: Tensor, shape: Sequence[int]) -> Tensor:
    """Return int64 of `shape` from key `k`, all 64 bits of each random."""
    counter = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=k.device)
    return _mix(_mix(k) + counter * _GOLDEN).reshape(tuple(shape))


def uniform(k: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Return uniform numbers in [0, 1) of `shape` from key `k`; 24 random bits each."""
    n = math.prod(shape)
    counter = torch.arange(1, n + 1, dtype=torch.int64, device=k.device)
    bits = _shift(_mix(_mix(k) + counter * _GOLDEN), 40)
    return (bits.to(dtype or torch.get_default_dtype()) * (1.0 / (1 << 24))).reshape(tuple(shape))


def normal(k: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Return standard normal numbers of `shape` from key `k` (Box-Muller)."""
    u = uniform(k, (2, *shape), dtype)
    radius = torch.sqrt(-2.0 * torch.log1p(-u[0]))
    return radius * torch.cos(2.0 * math.pi * u[1])
