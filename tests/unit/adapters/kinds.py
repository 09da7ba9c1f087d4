"""Adapters of every kind on tiny transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayfed import partition
from rayfed.engine.resident import Resident
from rayfed.models.start import start_from
from tests import toy
from tests.configs import refusal
from tests.tiny import changes

TEXT: dict[str, Any] = {
    "prompt": {"kind": "prompt", "tokens": 3},
    "vocab": {"kind": "prompt", "tokens": 3, "init": "vocab"},
    "words": {"kind": "prompt", "tokens": 8, "init": "text", "text": "the w00 w11"},
    "bottleneck": {"kind": "bottleneck", "size": 4},
    "ssf": {"kind": "ssf"},
    "head": {"kind": "head"},
}


IMAGE: dict[str, Any] = {
    "vpt": {"kind": "vpt", "tokens": 2},
    "shallow": {"kind": "vpt", "tokens": 2, "deep": False},
    "bottleneck": {"kind": "bottleneck", "size": 4, "targets": ["fc2", "o_proj"]},
    "ssf": {"kind": "ssf"},
    "lora": {"kind": "lora", "rank": 2, "targets": ["q_proj", "v_proj"]},
    "ia3": {"kind": "ia3", "targets": ["k_proj", "v_proj", "fc1"], "feedforward": ["fc1"]},
    "bias": {"kind": "bias"},
    "head": {"kind": "head"},
    "full": {"kind": "full"},
}


PREFIX = {"kind": "prefix", "tokens": 3}


def spec(places: dict[str, Path], model: str, adapter: Any, head: str = "auto", **more: Any) -> dict[str, Any]:
    """Changes to the toy's config: six clients, texts or digits."""
    made = changes(places, "bert" if model == "vit" else model, adapter=adapter, task={"model": {"head": head}})
    if model == "vit":
        made["task"] = {"data": {"name": "digits"}, "model": {"name": f"hf:{places['vit']}", "head": head}}
    return toy.merge(made, more)


def resident(places: dict[str, Path], model: str, adapter: Any, head: str = "auto", **more: Any) -> Resident:
    c = toy.config(**spec(places, model, adapter, head, **more))
    return Resident(c, partition.build(c), start_from(c), "cpu")


def run(places: dict[str, Path], where: Path, model: str, adapter: Any, head: str = "auto") -> toy.Ran:
    return toy.run_folder("fedavg", where, executor="vmap", **spec(places, model, adapter, head))


def refused(places: dict[str, Path], model: str, adapter: Any, **more: Any) -> str:
    return refusal(resident, places, model, adapter, **more)
