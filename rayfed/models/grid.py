"""A small detector of one stage: cells of 4 x 4 pixels, each answering for the object whose centre it has (as YOLO's, 1506.02640)."""

from __future__ import annotations

from torch import Tensor, nn


class Grid(nn.Module):
    """(B, C, H, W) -> (B, outputs, ceil(H / 4), ceil(W / 4)): `backbone`, which halves twice, `neck` and `head`."""

    def __init__(self, outputs: int, channels: int, width: int):
        super().__init__()
        self.backbone = nn.Sequential(
            *_layer(channels, width, 1), *_layer(width, width, 2), *_layer(width, 2 * width, 2)
        )
        self.neck = nn.Sequential(*_layer(2 * width, 2 * width, 1))
        self.head = nn.Conv2d(2 * width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.backbone(x)))


def _layer(a: int, b: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(a, b, 3, stride, 1), nn.GroupNorm(1, b), nn.ReLU()]


def build(classes: int, input_shape: tuple[int, ...], width: int) -> nn.Module:
    return Grid(classes, input_shape[0], width)
