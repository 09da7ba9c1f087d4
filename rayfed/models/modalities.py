"""Late fusion: an encoder for each modality, what stands for absent ones, and one classifier. `encoders.NAME` belong to a modality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from rayfed.data.modalities import Modality


def split(x: Tensor, modalities: Sequence[Modality]) -> tuple[list[Tensor], Tensor]:
    """Return (each modality's numbers (B, *shape), what is there (B, M) bool) of rows (B, D). What is absent is blank, whatever it held, so
    that neither it nor its gradient can leak."""
    m = len(modalities)
    there, out, at = x[:, -m:] > 0, [], 0
    for i, one in enumerate(modalities):
        values = torch.where(there[:, i : i + 1], x[:, at : at + one.size], one.blank)
        out.append(values.unflatten(1, one.shape))
        at += one.size
    return out, there


def blanked(h: Tensor, there: Tensor) -> Tensor:
    """Return h (B, M, d) with 0 for what is absent, there (B, M)."""
    return torch.where(there[..., None], h, 0.0)


class Words(nn.Module):
    """Embed texts (B, L) of word numbers, -1 where there is none, as the mean of their words' vectors and a layer on it, (B, dim)."""

    def __init__(self, words: int, hidden: int, dim: int):
        super().__init__()
        self.words, self.out = nn.Embedding(words, hidden), nn.Linear(hidden, dim)

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids >= 0).to(self.words.weight.dtype)[..., None]
        vectors = self.words(ids.clamp(min=0).round().long())
        return self.out(torch.relu((vectors * there).sum(1) / there.sum(1).clamp(min=1)))


class Encoders(nn.ModuleDict):
    """Encode rows (B, D) as (B, M, dim): texts by `Words`, all else by a network of one hidden layer on its numbers."""

    def __init__(self, modalities: Sequence[Modality], hidden: int, dim: int):
        super().__init__({m.name: self._one(m, hidden, dim) for m in modalities})
        self.modalities = tuple(modalities)

    @staticmethod
    def _one(m: Modality, hidden: int, dim: int) -> nn.Module:
        if m.kind == "text":
            return Words(m.words, hidden, dim)
        return nn.Sequential(nn.Flatten(), nn.Linear(m.size, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        values, _ = split(x, self.modalities)
        return torch.stack([self[m.name](v) for m, v in zip(self.modalities, values, strict=True)], 1)


class Skip(nn.Module):
    """Fuse h (B, M, d) as the mean of what is there."""

    def __init__(self, number: int, dim: int, present: bool):
        super().__init__()

    def forward(self, h: Tensor, there: Tensor) -> Tensor:
        return blanked(h, there).sum(1) / there.sum(1, keepdim=True).to(h.dtype).clamp(min=1)


class Zero(Skip):
    """Fuse h (B, M, d) as the mean of all, absent ones being what encoders make of nothing (zero filling)."""

    def forward(self, h: Tensor, there: Tensor) -> Tensor:
        return h.mean(1)


class Learned(nn.Module):
    """Fuse h (B, M, d) as the mean of h_m + E_m^1 for what is there and of E_m^0 for what is absent; without `present` E^1 is left out."""

    def __init__(self, number: int, dim: int, present: bool):
        super().__init__()
        self.absent = nn.Parameter(torch.empty(number, dim).uniform_(-1, 1))
        if present:
            self.present = nn.Parameter(torch.empty(number, dim).uniform_(-1, 1))

    def shifted(self, h: Tensor, there: Tensor) -> Tensor:
        """Return h with the row of what is there added, 0 for what is absent."""
        return blanked(h + getattr(self, "present", 0.0), there)

    def forward(self, h: Tensor, there: Tensor) -> Tensor:
        return torch.where(there[..., None], self.shifted(h, there), self.absent).mean(1)


class Refine(nn.Module):
    """Predict each modality from the others that are there: (h (B, M, d), there (B, M)) -> (predictions (B, M, d), weights (B, M, M)).

    w_mj = softmax over the present j != m of q_m . K h_j / sqrt(d), prediction_m = G_m sum_j w_mj h_j + b_m; without any, weights are 0.
    """

    def __init__(self, number: int, dim: int):
        super().__init__()
        bound = 1 / math.sqrt(dim)
        self.query = nn.Parameter(torch.empty(number, dim).uniform_(-1, 1))
        self.key = nn.Linear(dim, dim, bias=False)
        self.weight = nn.Parameter(torch.empty(number, dim, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(number, dim))

    def forward(self, h: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        number, dim = self.query.shape
        s = torch.einsum("md,bjd->bmj", self.query, self.key(h)) / math.sqrt(dim)
        others = there[:, None, :] & ~torch.eye(number, dtype=torch.bool, device=h.device)
        w = torch.softmax(torch.where(others, s, -1e30), -1) * others
        return torch.einsum("mde,bme->bmd", self.weight, w @ h) + self.bias, w


class Refined(Learned):
    """Fuse h (B, M, d) as sum_m u_m z_m: z_m = h_m + E_m^1 where it is there, else E_m^0 plus what `refine` predicts of it; u = softmax
    over m of s(z_m) - kappa (1 - a_m), s linear, kappa >= 0 learned. `project` is of losses alone (FedMAC)."""

    def __init__(self, number: int, dim: int, present: bool):
        super().__init__(number, dim, present)
        self.refine, self.score = Refine(number, dim), nn.Linear(dim, 1)
        self.kappa = nn.Parameter(torch.zeros(()))
        self.project = nn.Linear(dim, dim, bias=False)
        self.parts = Parts()

    def forward(self, h: Tensor, there: Tensor) -> Tensor:
        h = self.shifted(h, there)
        predicted, _ = self.refine(h, there)
        z = torch.where(there[..., None], h, self.absent + predicted)
        u = torch.softmax(self.score(z)[..., 0] - F.softplus(self.kappa) * (~there).to(h.dtype), -1)
        return (u[..., None] * self.parts(z)).sum(1)


class Parts(nn.Module):
    """Answer what it is given: where z (B, M, d) can be watched."""

    def forward(self, z: Tensor) -> Tensor:
        return z


FUSIONS = {"skip": Skip, "zero": Zero, "learned": Learned, "refined": Refined}


class Modalities(nn.Module):
    """Answer (B, classes) of rows (B, D): `encoders`, one for each modality, `fusion` of what they answer, and `head`."""

    def __init__(self, classes: int, modalities: Sequence[Modality], dim: int, hidden: int, absent: str, present: bool):
        super().__init__()
        self.modalities = tuple(modalities)
        self.encoders = Encoders(modalities, hidden, dim)
        self.fusion = FUSIONS[absent](len(modalities), dim, present)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fusion(self.encoders(x), x[:, -len(self.modalities) :] > 0))


def build(
    classes: int,
    input_shape: tuple[int, ...],
    modalities: Sequence[Modality],
    dim: int,
    hidden: int,
    absent: str,
    present: bool,
) -> nn.Module:
    return Modalities(classes, modalities, dim, hidden, absent, present)
