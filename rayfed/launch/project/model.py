"""Your network: a function from what the data are to a torch module."""

from torch import nn


def network(classes, input_shape, width=32):
    """Return a network from (B, *input_shape) to logits (B, classes), written as for any PyTorch loop."""
    (features,) = input_shape
    return nn.Sequential(
        nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )
