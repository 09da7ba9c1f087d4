"""The rank of LoRA adapters.

lora_rank: one rank for all clients; lora_rank:mixed: one for all against ranks shared out over the clients;
lora_rank:continuous: any rank from 1 to 64, for --search random or optuna.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from rayfed.config.schema import Config


def space(config: Config) -> dict[str, Any]:
    """Sweep one rank for all clients."""
    return {"adapter.kind": "lora", "adapter.rank": tune.grid_search([2, 8, 32])}


def mixed(config: Config) -> dict[str, Any]:
    """Sweep one rank for all against ranks shared out over the clients."""
    shares = {2: 0.25, 4: 0.25, 8: 0.25, 16: 0.25}
    return {"adapter.kind": "lora", "adapter.rank": tune.grid_search([2, 16, shares])}


def continuous(config: Config) -> dict[str, Any]:
    """Sweep any rank."""
    return {"adapter.kind": "lora", "adapter.rank": tune.lograndint(1, 65)}
