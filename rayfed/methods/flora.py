"""FLoRA: the clients' factors stacked, merged into the base exactly, and a fresh adapter for the next round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayfed import MethodSettings
from rayfed.adapters import lora
from rayfed.methods._bases.over_lora import MovesBase

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree


class FLoRA(MovesBase):
    """Wang et al. 2024, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations"
    (2409.05976); clients may have different ranks r_i.

    Client i: (A_i, B_i) <- local training from a fresh adapter (B = 0) on the current W; sends both, and the head's change.
    Server, layer by layer: A <- [p_1 A_1; ...; p_K A_K], B <- [B_1 ... B_K], so that B A = sum_i p_i B_i A_i without error;
    W <- W + (alpha / r) B A; a fresh A is drawn, B = 0. The head is averaged.
    W is sent whole here, since a client that missed rounds needs all of their stacks; one that was in the last round would do
    with that round's (sum_i r_i (m + n) numbers).
    Down: W (m, n) of each adapted layer once it has moved, a fresh A (r, n) and B = 0, head. Up: the change of A and B, of
    the head, n_i. Kept at clients: nothing. At the server: W of each adapted layer, A, B, head.
    A run ends in a whole model, the adapter merged.
    """

    no_rule = "what is averaged are the clients' products B A, each from its own factors"

    class Settings(MethodSettings):
        weight: Literal["examples", "one"] = Field("examples", description="Weights p_i: by examples, or equal.")

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        model, base, got = self.ask(state, fed, task)
        if not got.ids:
            return state
        exact = lora.products(model, got, self.settings.weight)
        base = lora.move_weights(task, base, {n: b @ a for n, (b, a) in exact.items()})
        head = {n: model[n] + got.folded["delta"][n] for n in task.head}
        return {"model": {**task.fresh_params(fed.key("adapter")), **head, **base}}
