"""A small residual network with GroupNorm (batch statistics neither average well nor vectorise)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, a: int, b: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(math.gcd(8, b), b)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(math.gcd(8, b), b)
        self.skip = nn.Conv2d(a, b, 1, stride, bias=False) if a != b or stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.skip(x))


class ResNet(nn.Module):
    def __init__(self, classes: int, channels: int, width: int, blocks: int):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        sizes = [width, width, 2 * width, 4 * width]
        stages: list[nn.Module] = []
        for i in range(3):
            stages += [
                Block(sizes[i] if j == 0 else sizes[i + 1], sizes[i + 1], 2 if i and j == 0 else 1)
                for j in range(blocks)
            ]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


def build(classes: int, input_shape: tuple[int, ...], width: int, blocks: int) -> nn.Module:
    return ResNet(classes, input_shape[0], width, blocks)
