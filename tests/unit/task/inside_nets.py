"""A network with a skip connection."""

from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return x + self.inner(x).tanh()


class Skips(nn.Module):
    def __init__(self, classes, inputs):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(inputs, 6), Block(6), nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.block(self.first(x)))


def skips(classes, input_shape):
    return Skips(classes, input_shape[0])
