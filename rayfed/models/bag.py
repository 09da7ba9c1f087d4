"""Texts as the mean of their words' vectors, and one layer on it: an encoder for pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bag(nn.Module):
    """Embed numbers of words (..., L), -1 where there is none, as (..., dim); words share a table's rows (hashing trick)."""

    def __init__(self, words: int, dim: int):
        super().__init__()
        self.words = nn.Embedding(words, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids >= 0).to(self.words.weight.dtype)[..., None]
        vectors = self.words(ids.clamp(min=0).long() % self.words.num_embeddings)
        mean = (vectors * there).sum(-2) / there.sum(-2).clamp(min=1)
        return mean + self.out(torch.tanh(mean))


def build(classes: int, input_shape: tuple[int, ...], words: int, dim: int) -> nn.Module:
    return Bag(words, dim)
