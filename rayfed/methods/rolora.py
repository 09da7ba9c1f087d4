"""RoLoRA: B and A take turns, a round each, so that the mean of one factor is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Wire, mean, visit
from rayfed.adapters import lora
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.wire import params_of

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Local


class RoLoRA(OverLoRA):
    """Chen et al. 2025, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA" (2502.01755).

    Odd rounds (from 1) train B with A fixed, even rounds A with B fixed: B starts at zero, where A has no gradient.
    Client i: X_i <- local training of the round's factor X, and of the head; sends their change.
    Server: X <- sum_i p_i X_i, head alike. The other factor is common, so the product is the mean of the clients' products.
    Unequal ranks: of A and B a client holds the first r_i rows and columns; the mean of the products' changes stays exact.
    Down: A (r, n), B (m, r), head: a client sampled anew needs all. Up: the update of the round's factor and of the head, n_i.
    Kept at clients: nothing. At the server: A, B, head.
    """

    class Settings(MethodSettings):
        weight: Literal["examples", "one"] = Field("examples", description="Weights p_i: by examples, or equal.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={
            "a": Part(params_of("lora_A"), update=True, robust=True, note="in even rounds"),
            "b": Part(params_of("lora_B"), update=True, robust=True, note="in odd rounds"),
            "head": Part(params_of("head"), update=True, robust=True),
        },
        server={"model": Part(PARAMS)},
    )

    @visit
    def train_a(self, task: Task) -> Visit:
        return turn(task, self.local, "a", lora.is_a)

    @visit
    def train_b(self, task: Task) -> Visit:
        return turn(task, self.local, "b", lora.is_b)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        part, visit = ("b", self.train_b) if fed.round % 2 else ("a", self.train_a)
        folds = [mean(p, weight=self.settings.weight) for p in (part, "head")]
        got = fed.ask(visit, fed.sample(), shared={"model": state["model"]}, fold=folds)
        moved = {**got.folded[part], **got.folded["head"]}
        return {"model": {n: p + moved[n] if n in moved else p for n, p in state["model"].items()}}


def turn(task: Task, local: Local, part: str, factor: Callable[[str], bool]) -> Visit:
    """Train one factor and the head; send their changes as `part` and `head`."""
    visit = lora.train_selected(task, local, lambda n: factor(n) or n in task.head)

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        moved = visit.end(client, carry)[0]["delta"]
        return {part: lora.select(moved, factor), "head": lora.select(moved, lambda n: n in task.head)}, client.own

    return visit._replace(end=end)
