"""A client's own rotation of the directions in which its activations vary most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed import keys
from rayfed.cut import At, CutTransform, TransformSettings
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Rotate(CutTransform):
    """ELSA's orthogonal perturbation of the semantic subspace (2601.13824), its form [inferred]: a client sends u Q,
    Q = I - V V^T + V O V^T, V (d, k) the first k right singular vectors of the batch's activations, O (k, k) orthogonal and the client's
    own for the whole run.

    Lengths are kept, and what is orthogonal to V stays as it is. The server cannot undo Q, so it changes what is computed, and training
    goes around it; gradients come back times Q^T, V being held. Acts where activations go to the server.
    """

    class Settings(TransformSettings):
        dims: int | None = Field(None, ge=1, description="Directions k that are rotated; default: an eighth of all.")

    def __call__(self, h: Tensor, at: At) -> Tensor:
        return h @ self.matrix(h.detach(), at) if at.sends else h

    def matrix(self, h: Tensor, at: At) -> Tensor:
        """Return Q (d, d) for a batch of activations (B, ..., d)."""
        d = h.shape[-1]
        k = min(d, self.settings.dims or max(1, d // 8))
        rows = (h * at.w.to(h.dtype).reshape(-1, *[1] * (h.dim() - 1))).reshape(-1, d)
        v = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -k:]
        largest = v.gather(0, v.abs().argmax(0, keepdim=True))
        v = v * torch.where(largest < 0, -1.0, 1.0).to(v.dtype)  # eigenvectors have no sign of their own
        o = self.own(at.client, k).to(h.dtype)
        return (
            torch.eye(d, dtype=h.dtype, device=h.device) + v @ (o - torch.eye(k, dtype=h.dtype, device=h.device)) @ v.T
        )

    def own(self, client: Tensor, k: int) -> Tensor:
        """Return a client's orthogonal matrix (k, k) in float64: Q of the QR decomposition of normal numbers, R's diagonal positive."""
        base = torch.tensor(keys.key(self.seed, 0, -1, "rotations"), device=client.device)
        q, r = torch.linalg.qr(keys.normal(keys.fold(base, client), (k, k), torch.float64))
        return q * torch.where(torch.diagonal(r) < 0, -1.0, 1.0).to(q.dtype)
