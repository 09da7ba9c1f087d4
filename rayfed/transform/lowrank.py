"""Matrices as products of two thin ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from rayfed import keys
from rayfed.lazy import torch
from rayfed.transform import At, Piece, Transform, TransformSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree

TINY = 1e-5  # of a matrix's norm, below which a column of Q is drawn anew


class Matrix(NamedTuple):
    """A piece as a matrix (rows, columns) of the vector from `start`; name: its own among the part's, as a key."""

    part: str
    name: str
    start: int
    rows: int
    columns: int


class LowRank(Transform):
    """PowerSGD: Vogels et al. 2019, "PowerSGD: Practical Low-Rank Gradient Compression" (1905.13727), algorithm 1, at each client by
    itself: a matrix M (m, n), the rest of a tensor's axes as its columns, becomes P Q^T by one step of power iteration from the
    client's last Q,
        P <- orthogonalise(M Q),  Q <- M^T P.
    What is left out is added to the client's next update. The paper sums P and Q over workers between the two products, which
    takes two exchanges; here each client sends both, and means are over the products P Q^T.

    Sent: r (m + n) numbers for a matrix where that is fewer than m n, and all of any other tensor.
    """

    class Settings(TransformSettings):
        rank: int = Field(2, ge=1, description="Columns r of P and Q.")
        error_feedback: bool = Field(True, description="What is left out is added to the client's next update.")

    lossy = True

    def own_init(self, pieces: Sequence[Piece]) -> Tree:
        q: dict[str, dict[str, Tensor]] = {}
        for m in self._matrices(pieces):
            dtype = next(p.dtype for p in pieces if p.start == m.start)
            q.setdefault(m.part, {})[m.name] = self._first(m, dtype)
        return {**super().own_init(pieces), "q": q}

    def _first(self, m: Matrix, dtype: Any, device: Any = "cpu") -> Tensor:
        """Return what Q starts from: draws from N(0, 1) that are the same for every client."""
        assert self.config is not None
        key = keys.key(self.config.seed, 0, -1, f"lowrank {m.part} {m.name}")
        return keys.normal(torch.tensor(key, device=device), (m.columns, self.settings.rank), dtype)

    def encode(self, v: Tensor, own: Tree, at: At) -> tuple[Tensor, Tree, Tree]:
        sent, at_end, q_after = [], 0, {part: dict(q) for part, q in own["q"].items()}
        for m in self._matrices(at.pieces):
            stop = m.start + m.rows * m.columns
            matrix, q = v[m.start : stop].reshape(m.rows, m.columns), own["q"][m.part][m.name].to(v.dtype)
            # A column that has nearly vanished points nowhere: rounding would decide what is sent.
            there = torch.linalg.vector_norm(q, dim=0) > TINY * torch.linalg.vector_norm(matrix)
            q = torch.where(there, q, self._first(m, v.dtype, v.device))
            p = torch.linalg.qr(matrix @ q).Q
            q = matrix.T @ p
            sent += [v[at_end : m.start], p.reshape(-1), q.reshape(-1)]
            at_end, q_after[m.part][m.name] = stop, q.to(own["q"][m.part][m.name].dtype)
        return torch.cat([*sent, v[at_end:]]), {}, {"q": q_after}

    def decode(self, sent: Tensor, beside: Tree, like: Tensor, at: At) -> Tensor:
        out, done, at_end, r = [], 0, 0, self.settings.rank
        for m in self._matrices(at.pieces):
            plain = m.start - at_end
            p, q = done + plain, done + plain + m.rows * r
            out.append(sent[done:p])
            product = sent[p:q].reshape(m.rows, r) @ sent[q : q + m.columns * r].reshape(m.columns, r).T
            out.append(product.reshape(-1))
            done, at_end = q + m.columns * r, m.start + m.rows * m.columns
        return torch.cat([*out, sent[done:]])

    def size(self, n: int, bits: int, pieces: Sequence[Piece]) -> tuple[int, int, int]:
        r = self.settings.rank
        return n + sum(r * (m.rows + m.columns) - m.rows * m.columns for m in self._matrices(pieces)), bits, 0

    def _matrices(self, pieces: Sequence[Piece]) -> Iterator[Matrix]:
        """Yield the pieces that are sent as products."""
        r = self.settings.rank
        for p in pieces:
            if len(p.shape) > 1:
                rows, columns = p.shape[0], math.prod(p.shape[1:])
                if r * (rows + columns) < rows * columns:
                    yield Matrix(p.part, ".".join(p.path) or "all", p.start, rows, columns)
