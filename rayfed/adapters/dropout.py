"""Dropout inside adapters whose mask is a function of the step's key, so that `loop` and `vmap` draw the same one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rayfed import keys

PURPOSE = 0x64726F70  # apart from what a method draws from the same key


class KeyedDropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014): elements are zero with probability p, the others times 1 / (1 - p).

    number: of the layer, whose masks are its own; `during`: {"key": 0-d int64 tensor, or None for no dropout}, set around a
    training step by who owns the module.
    """

    def __init__(self, p: float, number: int):
        super().__init__()
        self.p, self.number = p, number
        self.during: dict[str, Any] = {"key": None}

    def forward(self, x: Tensor) -> Tensor:
        key = self.during["key"]
        if key is None:
            return x
        drawn = keys.uniform(keys.fold(keys.fold(key, PURPOSE), self.number), x.shape, torch.float32)
        return x * (drawn >= self.p).to(x.dtype) / (1 - self.p)


def replace(network: nn.Module, p: float) -> None:
    """In every LoRA layer of PEFT's, in place of its own dropout."""
    held = [getattr(m, "lora_dropout", None) for m in network.modules()]
    for number, own in enumerate(h for h in held if isinstance(h, nn.ModuleDict)):
        own["default"] = KeyedDropout(p, number)
