"""Networks from a preference to a solution of each of several problems: a trunk that all share, and a head for each problem."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def stacked(*shape: int, fan_in: int) -> nn.Parameter:
    """Return a parameter drawn as a linear layer's own: evenly within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class Heads(nn.Module):
    """Answer (B, N, outputs) of (B, hidden): for each of N problems a network of one hidden layer."""

    def __init__(self, problems: int, hidden: int, outputs: int):
        super().__init__()
        self.weight_1 = stacked(problems, hidden, hidden, fan_in=hidden)
        self.bias_1 = stacked(problems, hidden, fan_in=hidden)
        self.weight_2 = stacked(problems, outputs, hidden, fan_in=hidden)
        self.bias_2 = stacked(problems, outputs, fan_in=hidden)

    def forward(self, s: Tensor) -> Tensor:
        h = torch.relu(torch.einsum("bh,nkh->bnk", s, self.weight_1) + self.bias_1)
        return torch.einsum("bnh,nkh->bnk", h, self.weight_2) + self.bias_2


class PSL(nn.Module):
    """CoPSL's network: (B, m) -> trunk ReLU(W p + b) -> heads, (B, N, outputs) before the sigmoid. `heads` belong to one problem each."""

    def __init__(self, problems: int, m: int, hidden: int, outputs: int):
        super().__init__()
        self.trunk = nn.Linear(m, hidden)
        self.heads = Heads(problems, hidden, outputs)

    def forward(self, p: Tensor) -> Tensor:
        return self.heads(torch.relu(self.trunk(p)))


def build(classes: int, input_shape: tuple[int, ...], hidden: int, outputs: int) -> nn.Module:
    return PSL(classes, input_shape[0], hidden, outputs)
