"""FedSVD: only B is trained; the server turns A to the principal directions of the mean B A, which stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Wire, mean, visit
from rayfed.adapters import lora
from rayfed.lazy import torch
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.wire import params_of

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree, Visit


class FedSVD(OverLoRA):
    """Lee et al. 2025, "FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA" (2505.12805), and the authors'
    code.

    Client i: B_i, head_i <- local training with A fixed; sends their change.
    Server, layer by layer: B' = sum_i p_i B_i, p_i = n_i / n; B' A = U S V^T;  A <- V_r^T, B <- U_r S_r. Since A was common, B' A is the
    mean of the clients' products, and the new B A is B' A: nothing is lost. A's rows are orthonormal from then on, which bounds the
    gradient of B.
    The product is decomposed through its factors. Directions that it lacks keep their row of A, with zeros in B (ours: the code takes
    whatever the decomposition gives there; before round 1 A is the first draw in both). The head is averaged.
    With `every: null` A stays for ever: FFA-LoRA. The paper's clipping and noise are not part of the method here.
    Unequal ranks: a client has the first r_i rows of A and trains as many columns of B, which are the best pair of that rank.
    Down: A (r, n), B (m, r) of each layer, head. Up: the change of B and of the head, n_i. Kept at clients: nothing.
    At the server: A, B, head.
    """

    class Settings(MethodSettings):
        every: int | None = Field(1, ge=1, description="Rounds between two decompositions (code: 1); null: none.")
        weight: Literal["examples", "one"] = Field("examples", description="Weights p_i: by examples, or equal.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(params_of("lora_B", "head"), update=True)},
        server={"model": Part(PARAMS)},
    )

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.initial}  # FFA-LoRA's start

    @visit
    def train(self, task: Task) -> Visit:
        return lora.train_selected(task, self.local, lambda n: not lora.is_a(n))

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        old = state["model"]
        fold = mean("delta", weight=self.settings.weight)
        got = fed.ask(self.train, fed.sample(), shared={"model": old}, fold=fold)
        if not got.ids:
            return state
        moved = got.folded["delta"]
        new = {n: p + moved[n] if n in moved else p for n, p in old.items()}
        if self.settings.every and fed.round % self.settings.every == 0:
            for n in lora.pairs(new):
                b, a = (new[x].to(torch.float64) for x in n)
                new[n.b], new[n.a] = lora.best_pair(b, a, old[n.a])
        return {"model": new}
