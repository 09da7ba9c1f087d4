"""What FedDyn and FedSpeed share: each client's sum of its own updates, which bends its steps, and its mean at the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed import PARAMS, Part, Wire, mean, tree
from rayfed.methods._bases.one_model import OneModel
from rayfed.methods._bases.remembering import memory_problems

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config


class Dual(OneModel):
    """Base: client i keeps h_i, the sum of its updates so far; the server keeps their mean h over all N clients, and goes to the
    mean model of the round's clients plus h. A step's gradient gets `strength` times y - x^r + h_i."""

    no_rule = "the server's mean of h_i is that of the updates as clients made them, which a rule would change"

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS, update=True)},
        keep={"h_i": Part(PARAMS, private=True, note="sum of the client's own updates")},
        server={"model": Part(PARAMS), "h": Part(PARAMS, note="mean of h_i over all clients")},
    )

    def check(self, config: Config) -> list[str]:
        return memory_problems(config)

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), "h": tree.zeros(task.params_like)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"h_i": tree.zeros(task.params_like)}

    def start(self, client: ClientContext) -> Tree:
        """Return the first carry; `to` is x^r - h_i, towards which steps are pulled."""
        x = client.shared["model"]
        return {"model": x, "to": tree.sub(x, client.own["h_i"])}

    def pull(self, gradient: Tree, carry: Tree, strength: float) -> Tree:
        """Return the gradient with the pull."""
        return tree.add(gradient, tree.sub(carry["model"], carry["to"]), strength)

    def end(self, client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        """Return the update, and h_i with it."""
        delta = tree.sub(carry["model"], client.shared["model"])
        return {"delta": delta}, {"h_i": tree.add(client.own["h_i"], delta)}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight="one"))
        if not got.ids:
            return state
        delta = got.folded["delta"]
        h = tree.add(state["h"], delta, len(got) / fed.population)
        model = tree.add(tree.add(state["model"], delta), h)
        return {"model": task.keep_averages(model, state["model"], delta), "h": h}
