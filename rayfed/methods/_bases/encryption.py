"""Additive encryption of small whole numbers for searches: Paillier's in plain Python, whose decryption takes every party's share, and
BFV by TenSEAL, whose key is the searcher's own.

What is encrypted are queries (Q, d), what comes back their inner products with rows (M, d) that the other side has in the clear. All
ciphertexts are arrays of bytes, uint8, their last axis one ciphertext.
"""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

Bytes = np.ndarray  # uint8


class Overflow(ValueError):
    """Raised where numbers would leave the range in which sums are exact."""


def check_range(numbers: np.ndarray, bits: int) -> None:
    """Raise Overflow where a row is longer than fixed point of so many bits gives unit vectors: inner products could wrap around."""
    longest = float(np.sqrt((numbers.astype(np.float64) ** 2).sum(-1)).max(initial=0.0))
    if longest > 2**bits + math.sqrt(numbers.shape[-1]) / 2:
        raise Overflow(
            f"a row of length {longest:.1f} found, exact up to {2**bits} and rounding; rows have to be of length 1"
        )


# -- Paillier, with a key that is dealt in shares ------------------------------------------------------------------------


class Paillier(NamedTuple):
    """Paillier 1999 with modulus n: Enc(m) = (1 + n m) r^n mod n^2. Sums of plaintexts are products of ciphertexts, multiples are powers.

    Decryption: c^D mod n^2 = 1 + n m with D = 0 mod lambda and 1 mod n. D is dealt in shares that sum to it mod n lambda, so that all
    powers c^{D_j} together decrypt and any fewer do not (Damgard and Jurik 2001 have thresholds below all). Of toy size, in plain Python,
    and its random numbers are a run's: it shows what travels and who sees what, and protects nothing.
    """

    n: int

    @property
    def square(self) -> int:
        return self.n * self.n

    @property
    def width(self) -> int:
        """Bytes of a ciphertext."""
        return (self.square.bit_length() + 7) // 8

    def encrypt(self, m: int, rng: random.Random) -> int:
        """Return a ciphertext of m, |m| < n / 2. Overflow beyond."""
        if 2 * abs(m) >= self.n:
            raise Overflow(f"{m} found, numbers are exact below n / 2 in absolute value")
        return (1 + self.n * (m % self.n)) * pow(rng.randrange(1, self.n), self.n, self.square) % self.square

    def again(self, c: int, rng: random.Random) -> int:
        """Return another ciphertext of the same number, which nobody can link to the first."""
        return c * pow(rng.randrange(1, self.n), self.n, self.square) % self.square

    def partial(self, c: int, share: int) -> int:
        """Return what a party's share makes of a ciphertext."""
        return pow(c, share, self.square)

    def combined(self, parts: Sequence[int]) -> int:
        """Return the number, of the parts of all parties. ValueError where some are missing."""
        found = math.prod(parts) % self.square
        m, rest = divmod(found - 1, self.n)
        if rest:
            raise ValueError(f"{len(parts)} parts decrypt nothing: those of all parties are needed")
        return m - self.n if 2 * m > self.n else m

    def weighted(self, ciphertexts: Sequence[int], inverses: Sequence[int], weights: Sequence[int]) -> int:
        """Return a ciphertext of sum_t weights_t m_t; inverses: of the ciphertexts mod n^2. All powers at once, bit by bit (Straus)."""
        signed = [(inv if w < 0 else c, abs(w)) for c, inv, w in zip(ciphertexts, inverses, weights, strict=True) if w]
        found = 1
        for bit in reversed(range(max((w.bit_length() for _, w in signed), default=0))):
            found = found * found % self.square
            for c, w in signed:
                if w >> bit & 1:
                    found = found * c % self.square
        return found


@cache
def dealt(seed: int, parties: int, bits: int) -> tuple[Paillier, list[int]]:
    """Return a public key with a modulus of `bits`, and a share of the private one for each party, as a trusted dealer would."""
    rng = random.Random(seed)
    p, q = _prime(rng, bits // 2), _prime(rng, bits - bits // 2)
    while p == q:
        q = _prime(rng, bits - bits // 2)
    n, lam = p * q, math.lcm(p - 1, q - 1)
    whole = lam * pow(lam, -1, n)  # 0 mod lambda, 1 mod n
    shares = [rng.randrange(n * lam) for _ in range(parties - 1)]
    return Paillier(n), [*shares, (whole - sum(shares)) % (n * lam)]


def _prime(rng: random.Random, bits: int) -> int:
    """Return a prime with its two highest bits set, so that a product of two has all bits."""
    while True:
        found = rng.getrandbits(bits) | 3 << (bits - 2) | 1
        if all(found % small for small in (3, 5, 7, 11, 13, 17, 19, 23)) and _is_prime(found, rng):
            return found


def _is_prime(n: int, rng: random.Random, rounds: int = 40) -> bool:
    """Return whether n passes Miller and Rabin's test."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(rounds):
        x = pow(rng.randrange(2, n - 1), odd, n)
        if x in (1, n - 1):
            continue
        if all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
            return False
    return True


class Packing(NamedTuple):
    """Several inner products in one plaintext: `each` bits for one, `many` of them, so that M of them take ceil(M / many) ciphertexts."""

    each: int
    many: int

    @classmethod
    def of(cls, bits: int, modulus: int) -> Packing:
        """Return how inner products of fixed point `bits` fit under a modulus of so many bits."""
        each = 2 * bits + 3
        return cls(each, (modulus - 2) // each)

    def ciphertexts(self, rows: int) -> int:
        return math.ceil(rows / self.many)

    @property
    def middle(self) -> int:
        """What is added to each, so that none is below zero."""
        return 1 << (self.each - 1)

    def open(self, packed: int, rows: int) -> Iterator[int]:
        """Yield the first inner products of a plaintext."""
        for i in range(min(rows, self.many)):
            yield (packed >> (i * self.each) & ((1 << self.each) - 1)) - self.middle


def encrypt(key: Paillier, queries: np.ndarray, rng: random.Random) -> Bytes:
    """Return the queries' entries one by one, (Q, d, width)."""
    return as_bytes([[key.encrypt(int(v), rng) for v in q] for q in queries], key.width)


def score(key: Paillier, packing: Packing, query: Bytes, rows: np.ndarray, rng: random.Random) -> Bytes:
    """Return the inner products of encrypted queries with rows (M, d), packed and made unlinkable, (Q, ceil(M / many), width)."""
    out = []
    for q in as_numbers(query):
        inverses = [pow(c, -1, key.square) for c in q]
        scores = [key.weighted(q, inverses, row) for row in rows.tolist()]
        packed = []
        for first in range(0, len(scores), packing.many):
            found = 1
            for c in reversed(scores[first : first + packing.many]):
                found = pow(found, 1 << packing.each, key.square) * c * (1 + key.n * packing.middle) % key.square
            packed.append(key.again(found, rng))
        out.append(packed)
    return as_bytes(out, key.width)


def partials(key: Paillier, scores: Bytes, share: int) -> Bytes:
    """Return what a share makes of ciphertexts (..., width)."""
    flat = [key.partial(c, share) for c in as_numbers(scores.reshape(-1, key.width))]
    return as_bytes(flat, key.width).reshape(scores.shape)


def combined(key: Paillier, packing: Packing, parts: Bytes, rows: int) -> np.ndarray:
    """Return inner products (..., rows) of all parties' parts (N, ..., G, width)."""
    shape = parts.shape[1:-1]
    numbers = [as_numbers(p.reshape(-1, key.width)) for p in parts]
    opened = [key.combined(each) for each in zip(*numbers, strict=True)]
    found = np.array([list(packing.open(m, packing.many)) for m in opened], np.int64)
    return found.reshape(*shape[:-1], shape[-1] * packing.many)[..., :rows]


def as_bytes(numbers: Any, width: int) -> Bytes:
    """Return whole numbers, lists of lists of them, as bytes (..., width)."""
    if isinstance(numbers, int):
        return np.frombuffer(numbers.to_bytes(width, "big"), np.uint8)
    return np.stack([as_bytes(n, width) for n in numbers])


def as_numbers(found: Bytes) -> Any:
    """Return bytes (..., width) as whole numbers, lists of lists of them."""
    return int.from_bytes(found.tobytes(), "big") if found.ndim == 1 else [as_numbers(f) for f in found]


def clear_bytes(numbers: np.ndarray) -> Bytes:
    """Return whole numbers as they are, (..., 8)."""
    return np.frombuffer(numbers.astype(np.int64).tobytes(), np.uint8).reshape(*numbers.shape, 8)


def clear_numbers(found: Bytes) -> np.ndarray:
    """Return what `clear_bytes` was given."""
    return np.frombuffer(found.tobytes(), np.int64).reshape(found.shape[:-1])


# -- BFV by TenSEAL ------------------------------------------------------------------------------------------------------

DEGREE, MODULUS = 8192, 1032193  # slots of a ciphertext; plaintexts are exact below half of the modulus
CIPHER, PUBLIC, SECRET = 440_000, 600_000, 900_000  # bytes, to which what is sent and kept is filled up


def missing() -> str:
    """Return why BFV cannot be had here; "" where it can."""
    return (
        ""
        if importlib.util.find_spec("tenseal")
        else "tenseal is not installed: pip install 'rayfed-engine[encryption]'"
    )


def new_pair() -> tuple[Bytes, Bytes]:
    """Return (public context, secret context) of a new key pair."""
    import tenseal as ts

    made = ts.context(ts.SCHEME_TYPE.BFV, poly_modulus_degree=DEGREE, plain_modulus=MODULUS)
    keys: dict[str, bool] = {"save_galois_keys": False, "save_relin_keys": False}
    secret = made.serialize(save_public_key=True, save_secret_key=True, **keys)
    public = made.serialize(save_public_key=True, save_secret_key=False, **keys)
    return filled(public, PUBLIC), filled(secret, SECRET)


def bfv_encrypt(context: Bytes, queries: np.ndarray, rows: int) -> Bytes:
    """Return queries (Q, d) for stores of at most so many rows, (ceil(Q / per), d, CIPHER): slot j rows + i of ciphertext (b, t) is
    entry t of query b per + j."""
    import tenseal as ts

    made, per = ts.context_from(taken(context)), DEGREE // rows
    out = []
    for first in range(0, len(queries), per):
        slots = np.repeat(queries[first : first + per], rows, axis=0)
        out.append([filled(ts.bfv_vector(made, column.tolist()).serialize(), CIPHER) for column in slots.T])
    return np.array(out)


def bfv_score(context: Bytes, query: Bytes, store: np.ndarray, rows: int, queries: int) -> Bytes:
    """Return the inner products with a store (M, d), M <= rows, made unlinkable by a fresh zero, (ceil(Q / per), 1, CIPHER)."""
    import tenseal as ts

    made, per = ts.context_from(taken(context)), DEGREE // rows
    store = np.concatenate([store, np.zeros((rows - len(store), store.shape[1]), store.dtype)])
    out = []
    for b, block in enumerate(query):
        many = min(per, queries - b * per)
        total = ts.bfv_vector(made, [0] * (many * rows))
        for cipher, column in zip(block, store.T, strict=True):
            if column.any():  # a product with zeros alone would be no ciphertext
                total = total + ts.bfv_vector_from(made, taken(cipher)) * np.tile(column, many).tolist()
        out.append([filled(total.serialize(), CIPHER)])
    return np.array(out)


def bfv_open(context: Bytes, scores: Bytes, rows: int, queries: int) -> np.ndarray:
    """Return inner products (Q, rows) of one store's answer."""
    import tenseal as ts

    made = ts.context_from(taken(context))
    found = [np.array(ts.bfv_vector_from(made, taken(s)).decrypt(), np.int64).reshape(-1, rows) for (s,) in scores]
    return np.concatenate(found)[:queries]


def filled(content: bytes, size: int) -> Bytes:
    """Return bytes with their number ahead, filled up to a size. Overflow where they are more."""
    if len(content) + 8 > size:
        raise Overflow(f"{len(content)} bytes found, {size - 8} at most were foreseen")
    return np.frombuffer(len(content).to_bytes(8, "big") + content + bytes(size - 8 - len(content)), np.uint8)


def taken(found: Bytes) -> bytes:
    """Return what `filled` was given."""
    raw = found.tobytes()
    return raw[8 : 8 + int.from_bytes(raw[:8], "big")]
