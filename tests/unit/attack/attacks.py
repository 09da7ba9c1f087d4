"""Attacks made by config, and updates of literal numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rayfed import attack
from rayfed.attack import Rows
from rayfed.config.schema import Kind

UPDATE = {"w": torch.tensor([[1.0, -2.0], [0.5, 4.0]]), "b": torch.tensor([3.0, -1.0])}
KEY = torch.tensor(7)
ROWS = Rows(classes=4, kind="tabular", high=9.0)


def make(kind: str, **settings: Any) -> Any:
    return attack.KINDS.make(Kind.model_validate({"kind": kind, "clients": 1, **settings}))


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)
