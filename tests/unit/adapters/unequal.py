"""Clients of unequal LoRA ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests import toy
from tests.tiny import Watched, on_bert  # noqa: F401

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


MIXED = {1: 0.5, 2: 0.25, 4: 0.25}


def mixed(
    on_bert: OnBert,  # noqa: F811
    alpha: float | None = None,
    rank: Any = MIXED,
    rslora: bool = False,
    **more: Any,
) -> dict[str, Any]:
    adapter = {"kind": "lora", "rank": rank, "alpha": alpha, "rslora": rslora, "targets": ["query", "value"]}
    return on_bert(toy.merge({"adapter": adapter}, more))
