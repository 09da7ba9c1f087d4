"""Small networks, and a file of a user's own."""

from __future__ import annotations

import numpy as np
import torch

IMAGE = (1, 8, 8)


def inputs(n: int, shape: tuple[int, ...] = IMAGE, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((n, *shape)))


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, inputs, width):
        super().__init__()
        self.body, self.head = nn.Linear(inputs, width), nn.Linear(width, classes)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x.flatten(1))))

def net(classes, input_shape, width=4):
    assert isinstance(input_shape, tuple)
    n = 1
    for s in input_shape:
        n *= s
    return Net(classes, n, width)

def raises(classes, input_shape):
    raise ZeroDivisionError("no width")

def bare(classes, input_shape):
    return lambda x: x

broken = 3
"""
