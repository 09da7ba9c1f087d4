"""FedBip-L: FedBip with separate similarities in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from rayfed.methods._bases.task_vectors import TaskVectors


class FedBipL(TaskVectors):
    """Yang et al. 2026, FedBip-L (2509.12697), the layer-wise variant of FedBip.

    For every layer l: p^l_ik = s^l_ik / sum_j s^l_ij, s^l_ik = cos(tau^l_i, tau^l_k), theta^l_i <- theta^l_i + sum_k p^l_ik tau^l_k.
    What a layer is was not readable: `layers: block` (ours) is a transformer block, or a module of the network outside of
    blocks, `module` a module, in which A and B of LoRA belong to one group; `one` is FedBip.
    Down: theta_i (P). Up: tau_i (P). Kept at clients: nothing. At the server: theta_i of all N, the first model.
    """

    class Settings(TaskVectors.Settings):
        layers: Literal["block", "module", "one"] = Field(
            "block",
            description="Entries with weights of their own: each block of the network, each module, or all as one.",
        )

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        if self.settings.layers == "one":
            return super().groups(names)
        found: dict[str, list[str]] = {}
        for n in names:
            found.setdefault((block if self.settings.layers == "block" else module)(n), []).append(n)
        return list(found.values())


def module(name: str) -> str:
    """Return the module that has a parameter; an adapted layer for what its adapter has. "a.query.lora_A.default.weight": "a.query" """
    return name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]


def block(name: str) -> str:
    """Return the name up to its first number, "encoder.layer.0" of "encoder.layer.0.attention.query.weight"; without one its module."""
    words = name.split(".")
    number = next((i for i, w in enumerate(words) if w.isdigit()), None)
    return module(name) if number is None else ".".join(words[: number + 1])
