"""Multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    def __init__(self, classes: int, inputs: int, hidden: Sequence[int]):
        super().__init__()
        sizes = [inputs, *hidden]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))


def build(classes: int, input_shape: tuple[int, ...], hidden: Sequence[int]) -> nn.Module:
    return MLP(classes, math.prod(input_shape), hidden)
