"""Softmax regression."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Linear(nn.Module):
    def __init__(self, classes: int, inputs: int):
        super().__init__()
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def build(classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return Linear(classes, math.prod(input_shape))
