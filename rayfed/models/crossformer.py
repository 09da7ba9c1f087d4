"""Late fusion of sequences: for each modality a transformer and a decoder with one learned query, so that lengths need not agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayfed.models.modalities import split
from rayfed.models.vit_tiny import Block

if TYPE_CHECKING:
    from rayfed.data.modalities import Modality


class Encoder(nn.Module):
    """Encode one modality (B, *shape) as (B, T, dim): words, lines of a sequence or of a picture, or single measurements by a convolution
    of width 1, positions, and blocks."""

    def __init__(self, m: Modality, dim: int, depth: int, heads: int):
        super().__init__()
        self.kind = m.kind
        self.length = m.shape[-2] if m.kind == "image" else m.shape[0]
        width = 1 if m.kind in ("text", "measurements") else m.size // self.length
        self.embed: nn.Module = nn.Embedding(m.words, dim) if m.kind == "text" else nn.Linear(width, dim)
        self.position = nn.Parameter(0.02 * torch.randn(self.length, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, v: Tensor) -> Tensor:
        if self.kind == "text":
            tokens = self.embed(v.clamp(min=0).round().long()) * (v >= 0)[..., None].to(v.dtype)
        elif self.kind == "image":  # a line of all channels is a step
            tokens = self.embed(v.transpose(1, 2).flatten(2))
        else:
            tokens = self.embed(v if v.dim() == 3 else v[..., None])
        return self.norm(self.blocks(tokens + self.position))


class Decoder(nn.Module):
    """Answer (B, dim) of H (B, T, dim): one learned query attends to it, and a layer follows."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.query = heads, nn.Parameter(torch.randn(dim))
        self.key, self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        b, t, d = h.shape
        k, v = (p(h).reshape(b, t, self.heads, -1) for p in (self.key, self.value))
        q = self.query.reshape(self.heads, -1)
        a = torch.softmax(torch.einsum("he,bthe->bht", q, k) / math.sqrt(d // self.heads), -1)
        c = self.out(torch.einsum("bht,bthe->bhe", a, v).reshape(b, d))
        return c + self.down(F.gelu(self.up(self.norm(c))))


class Fusion(nn.Module):
    """Fuse c (B, M, dim) as sum_m softmax over what is there of `weight`_m, times c_m."""

    def __init__(self, number: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(number))

    def forward(self, c: Tensor, there: Tensor) -> Tensor:
        u = torch.softmax(torch.where(there, self.weight, -1e30), -1) * there
        return torch.where(there[..., None], u[..., None] * c, 0.0).sum(1)


class CrossFormer(nn.Module):
    """Answer (B, classes) of rows (B, D): `encoders.NAME` and `decoders.NAME` of each modality, decoders being alike, `fusion`, `head`."""

    def __init__(self, classes: int, modalities: Sequence[Modality], dim: int, depth: int, heads: int):
        super().__init__()
        self.modalities = tuple(modalities)
        self.encoders = nn.ModuleDict({m.name: Encoder(m, dim, depth, heads) for m in modalities})
        self.decoders = nn.ModuleDict({m.name: Decoder(dim, heads) for m in modalities})
        self.fusion = Fusion(len(modalities))
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        values, there = split(x, self.modalities)
        c = [self.decoders[m.name](self.encoders[m.name](v)) for m, v in zip(self.modalities, values, strict=True)]
        return self.head(self.fusion(torch.stack(c, 1), there))


def build(
    classes: int, input_shape: tuple[int, ...], modalities: Sequence[Modality], dim: int, depth: int, heads: int
) -> nn.Module:
    return CrossFormer(classes, modalities, dim, depth, heads)
