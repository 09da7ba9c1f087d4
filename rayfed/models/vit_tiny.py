"""A small vision transformer (Dosovitskiy et al. 2021): patches, learned positions, pre-norm blocks, mean pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        a = torch.softmax(q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5, -1) @ v
        x = x + self.out(a.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, classes: int, shape: tuple[int, ...], patch: int, dim: int, depth: int, heads: int):
        super().__init__()
        c, h, w = shape
        self.patch = patch
        self.embed = nn.Linear(c * patch * patch, dim)
        self.position = nn.Parameter(0.02 * torch.randn((h // patch) * (w // patch), dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        p = self.patch
        x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)
        return self.head(self.norm(self.blocks(self.embed(x) + self.position)).mean(1))


def build(classes: int, input_shape: tuple[int, ...], patch: int, dim: int, depth: int, heads: int) -> nn.Module:
    return ViT(classes, input_shape, patch, dim, depth, heads)
