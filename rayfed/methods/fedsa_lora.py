"""FedSA-LoRA: A is shared, B never leaves its client."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import ANY, MethodSettings, Part, Wire, mean, model_of, sgd_visit, tree, visit
from rayfed.adapters import lora
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.wire import params_of

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class FedSALoRA(OverLoRA):
    """Guo et al. 2025, "Selective Aggregation for Low-Rank Adaptation in Federated Learning" (2410.01463).

    Client i: starts from (A, B_i, head_i), trains all of it, sends the change of A, keeps B_i and head_i.
    Server: A <- sum_i p_i A_i over the round's clients.
    Unequal ranks: zero padding. A client holds the first r_i rows of A, and its update is zero in the others.
    A client that never took part is served A with B = 0 and the first head: the pretrained model as it came.
    Down: A (r, n) of each layer. Up: its update, n_i. Kept at client i: B_i (m, r), head_i. At the server: A.
    """

    class Settings(MethodSettings):
        weight: Literal["examples", "one"] = Field("examples", description="Weights p_i: by examples, or equal.")

    wire: ClassVar[Wire] = Wire(
        down={"a": Part(params_of("lora_A"))},
        up={"delta": Part(params_of("lora_A"), update=True)},
        keep={"rest": Part(ANY, private=True, note="B_i and the head")},
        server={"a": Part(params_of("lora_A"))},
    )
    universal: ClassVar[str | None] = None

    def init(self, task: Task, key: int) -> Tree:
        return {"a": lora.select(task.init_params(key), lora.is_a)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"rest": lora.select(task.initial, lambda n: not lora.is_a(n))}

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": {**client.shared["a"], **client.own["rest"]}}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            a = lora.select(carry["model"], lora.is_a)
            rest = lora.select(carry["model"], lambda n: not lora.is_a(n))
            return {"delta": tree.sub(a, client.shared["a"])}, {"rest": rest}

        return sgd_visit(task.loss, self.local, start=start, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        fold = mean("delta", weight=self.settings.weight)
        got = fed.ask(self.train, fed.sample(), shared={"a": state["a"]}, fold=fold)
        return {"a": tree.add(state["a"], got.folded["delta"])}

    def serve(self, state: Tree) -> Tree:
        return {"a": state["a"]}

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: {**client.shared["a"], **client.own["rest"]})
