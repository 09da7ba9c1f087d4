"""q-FedAvg: clients with a higher loss count for more, so that accuracy is spread more evenly over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import PARAMS, SCALAR, Method, MethodSettings, Part, Phase, Wire, attack, sgd_visit, total, tree, visit
from rayfed.lazy import torch
from rayfed.visits import accumulate, average, once

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config


class QFedAvg(Method):
    """Li et al. 2020, "Fair Resource Allocation in Federated Learning" (ICLR 2020, 1905.10497).

    Client i: F_i = its mean training loss at x^r, plus 1e-10; then trains. With L = 1 / lr and w_i = L (x^r - y_i): sends
    D_i = F_i^q w_i and h_i = q F_i^{q-1} |w_i|^2 + L F_i^q. Server: x^{r+1} = x^r - sum_S D_i / sum_S h_i. q = 0 is FedAvg with equal
    weights. lr is the round's rate. A round without replies changes nothing.
    Down: the model (P floats). Up: P floats and one number. Kept at clients: nothing. At the server: the model.
    """

    no_buffers = "its step is a quotient of sums, of which running statistics are no part"
    no_rule = "its step is a quotient of sums"

    class Settings(MethodSettings):
        q: float = Field(1.0, ge=0, description="How much high losses count; the paper's grid is 0 to 15.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS, update=True, note="-D_i"), "h": Part(SCALAR)},
        server={"model": Part(PARAMS)},
    )

    def check(self, config: Config) -> list[str]:
        longer = [t.kind for t in config.transforms if t.kind in ("clip", "gaussian")]
        beside = f"but clients of {config.method.name} also send a norm, which is of the update as it was made; allowed"
        return [
            *([f"transforms: {', '.join(longer)} found, {beside}: others"] if longer else []),
            *(
                [f"attacks: {', '.join(a)} found, {beside}: attacks on data"]
                if (a := attack.on_updates(config))
                else []
            ),
        ]

    @visit
    def train(self, task: Task) -> Visit:
        q = self.settings.q

        def start(client: ClientContext) -> Tree:
            zero = torch.zeros((), dtype=task.dtype, device=task.device)
            return {"model": client.shared["model"], "sum": {"loss": zero}, "n": zero.clone()}

        def score(carry: Tree, batch: Any, key: Tensor) -> Tree:
            return {**carry, **accumulate(carry, {"loss": task.loss(carry["model"], batch)}, batch["w"])}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            loss, scale = average(carry)["loss"] + 1e-10, 1 / client.info.lr
            w = tree.scale(tree.sub(carry["model"], client.shared["model"]), scale)
            h = scale * loss**q
            if q:
                h = h + q * loss ** (q - 1) * tree.dot(w, w)
            return {"delta": tree.scale(w, loss**q), "h": h}, client.own

        first = Phase(once(), score, counts=False)
        return sgd_visit(task.loss, self.local, start=start, before=[first], end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        folds = (total("delta"), total("h"))
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=folds)
        if not got.ids:
            return state
        h = float(got.folded["h"])  # 0 where every loss is, and then nothing is left to learn
        return {"model": tree.add(state["model"], got.folded["delta"], 1 / h if h else 0.0)}
