"""The CNN of McMahan et al. 2017: 1,663,370 parameters on 28x28x1 with ten classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CNN(nn.Module):
    def __init__(self, classes: int, channels: int, height: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.fc = nn.Linear(64 * (height // 4) * (width // 4), 512)
        self.head = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        # max(relu(x)) is relu(max(x)), gradients too, with a quarter of the elements
        x = torch.relu(F.max_pool2d(self.conv1(x), 2))
        x = torch.relu(F.max_pool2d(self.conv2(x), 2))
        return self.head(torch.relu(self.fc(x.flatten(1))))


def build(classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return CNN(classes, *input_shape)
