"""A point: as many numbers as there are answers, whatever the input. What functions of them are worth, `task.kind: oracle` says."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Point(nn.Module):
    def __init__(self, size: int, start: float):
        super().__init__()
        self.z = nn.Parameter(torch.full((size,), float(start)))

    def forward(self, x: Tensor) -> Tensor:
        return self.z.expand(len(x), -1)


def build(classes: int, input_shape: tuple[int, ...], start: float = 1) -> nn.Module:
    return Point(classes, start)
