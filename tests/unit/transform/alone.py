"""One transform by itself, on vectors of numbers."""

from __future__ import annotations

from typing import Any

import torch

from rayfed import transform as transforms
from rayfed.config.schema import Config
from rayfed.transform import At, Piece, Transform
from tests import toy


def made(kind: str, config: Config | None = None, **settings: Any) -> Transform:
    cls = transforms.get(kind)
    return cls(cls.Settings(**settings), config or toy.config())


def pieces(*shapes: tuple[int, ...], part: str = "delta", dtype: Any = torch.float64) -> tuple[Piece, ...]:
    found: list[Piece] = []
    for i, shape in enumerate(shapes):
        start = found[-1].stop if found else 0
        found.append(Piece(part, (str(i),), shape, dtype, start, start + torch.Size(shape).numel()))
    return tuple(found)


def there_and_back(
    t: Transform, v: torch.Tensor, *, own: Any = None, key: int = 5, common: int = 7, of: Any = None
) -> Any:
    """(what is sent, what the server decodes, the client's state)."""
    at = At(torch.tensor(key), torch.tensor(common), 1, t.server_init(), of or pieces((len(v),)))
    sent, beside, after = t.encode(v, own or {}, at)
    return sent, t.decode(sent, beside, v, at), after


def vector(n: int = 1000, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
