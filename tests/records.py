"""Records of instructions and tiny causal language models."""

from __future__ import annotations

from typing import Any

from tests import toy

TARGETS = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}


def changes(places: dict[str, Any], kind: str = "gpt2", **more: Any) -> dict[str, Any]:
    base = {
        "task": {
            "data": {"name": f"parquet:{places['data']}", "length": 32},
            "model": {"name": f"hf:{places[kind]}"},
        },
        "adapter": {"kind": "lora", "rank": 2, "targets": TARGETS.get(kind, ["c_attn"])},
        "federation": {
            "clients": 5, "per_round": 3, "partition": {"kind": "dirichlet", "alpha": 1.0}, "groups": {"kind": "none"},
            "holdout": {"kind": "clients", "fraction": 0.2},
        },
        "local": {"steps": 3, "epochs": None, "batch_size": 4, "optimizer": {"name": "adamw", "lr": 0.01}},
    }  # fmt: skip
    return toy.merge(base, more)
