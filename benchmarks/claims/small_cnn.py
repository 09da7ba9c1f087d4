"""A small convolutional network for images of 28x28: what disue_conv runs on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Two convolutions of stride 2 and a layer of features, 52,000 parameters on 28x28x1; no statistics of batches."""

    def __init__(self, classes: int, channels: int, height: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(8, 16, 5, stride=2, padding=2)
        self.fc = nn.Linear(16 * (-(-height // 4)) * (-(-width // 4)), 64)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.head(torch.relu(self.fc(x.flatten(1))))


def network(classes: int, input_shape: tuple[int, ...], **options: Any) -> nn.Module:
    """Return the network for images (C, H, W)."""
    return SmallCNN(classes, *input_shape)
