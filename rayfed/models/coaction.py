"""A transformer from a preference to a solution of each of several problems, told apart by task embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayfed.models.psl import stacked
from rayfed.models.vit_tiny import Block


class Output(nn.Module):
    """Answer (B, N, outputs) of one state for each problem, (B, N, dim), by a layer for each."""

    def __init__(self, problems: int, dim: int, outputs: int):
        super().__init__()
        self.weight = stacked(problems, outputs, dim, fan_in=dim)
        self.bias = stacked(problems, outputs, fan_in=dim)

    def forward(self, y: Tensor) -> Tensor:
        return torch.einsum("bnd,nkd->bnk", y, self.weight) + self.bias


class CoAction(nn.Module):
    """(B, m) -> (B, N, outputs) before the sigmoid.

    together: the preference's token plus each problem's embedding are one sequence of N tokens, so that problems attend to one another, and
    embeddings are everybody's; else each problem has a sequence of two, [preference, embedding], and its embedding is its own.
    """

    def __init__(self, problems: int, m: int, dim: int, depth: int, heads: int, outputs: int, together: bool):
        super().__init__()
        self.together = together
        self.preference = nn.Linear(m, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        if together:
            self.embedding = nn.Parameter(torch.randn(problems, dim))
        self.heads = Output(problems, dim, outputs)
        if not together:
            self.heads.embedding = nn.Parameter(torch.randn(problems, dim))

    def forward(self, p: Tensor) -> Tensor:
        token = self.preference(p)[:, None]  # (B, 1, d)
        if self.together:
            return self.heads(self.norm(self.blocks(token + self.embedding)))
        own: Tensor = self.heads.embedding  # type: ignore[assignment]
        pairs = torch.stack([token.expand(-1, len(own), -1), own.expand(len(p), -1, -1)], 2)  # (B, N, 2, d)
        y = self.norm(self.blocks(pairs.flatten(0, 1)))[:, 0]
        return self.heads(y.unflatten(0, (len(p), len(own))))


def build(
    classes: int, input_shape: tuple[int, ...], dim: int, depth: int, heads: int, outputs: int, together: bool
) -> nn.Module:
    return CoAction(classes, input_shape[0], dim, depth, heads, outputs, together)
