"""Numbers that the tests of distillation share."""

from __future__ import annotations

import torch

# three experts, four classes; nobody has seen class 3
COUNTS = torch.tensor([[6, 0, 4, 0], [2, 8, 0, 0], [0, 1, 12, 0]])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(*shape: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(*shape, generator=rng(seed), dtype=torch.float64)
