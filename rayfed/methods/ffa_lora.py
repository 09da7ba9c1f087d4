"""FFA-LoRA: A stays as it was drawn for ever; only B and the head are trained and travel."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed import PARAMS, Part, Wire, mean, tree, visit
from rayfed.adapters import lora
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.wire import params_of

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class FFALoRA(OverLoRA):
    """Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (2403.12313).

    A = A^0 for ever: the run's first draw (or that of `init.from`), which every client makes from the seed.
    Client i: B_i, head_i <- local training with A^0 fixed; sends their change.
    Server: B <- sum_i p_i B_i, head alike, p_i = n_i / n. Since A is common, B A^0 = sum_i p_i B_i A^0: no error of averaging.
    Unequal ranks: a client has the first r_i rows of A^0 and trains as many columns of B; the mean of the changes stays exact.
    Down: B (m, r) of each layer, head. Up: their updates, n_i. Kept at clients: A^0. At the server: the whole adapter.
    """

    sums_only = True
    wire: ClassVar[Wire] = Wire(
        down={"trained": Part(params_of("lora_B", "head"))},
        up={"delta": Part(params_of("lora_B", "head"), update=True)},
        server={"model": Part(PARAMS)},
    )

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.initial}  # the same A at the clients, whatever `key` is

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {n: task.initial[n] if lora.is_a(n) else client.shared["trained"][n] for n in task.params_like}

        return lora.train_selected(task, self.local, lambda n: not lora.is_a(n), start)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        trained = lora.select(state["model"], lambda n: not lora.is_a(n))
        got = fed.ask(self.train, fed.sample(), shared={"trained": trained}, fold=mean("delta", weight="examples"))
        return {"model": {**state["model"], **tree.add(trained, got.folded["delta"])}}
