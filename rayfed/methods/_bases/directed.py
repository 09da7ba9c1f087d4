"""What methods share that put a direction which the server has worked out into every local step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayfed import Method, tree

if TYPE_CHECKING:
    from rayfed import ClientContext, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.fed import Replies


class Directed(Method):
    """Base: clients send their mean direction in units of a gradient, u_i / (K_i lr), and the server's `g` is minus its mean over
    the round's clients. `beta` is the weight of the fresh gradient, `server_lr` a multiple of K lr: 1 is averaging."""

    def check(self, config: Config) -> list[str]:
        o = config.local.optimizer
        if o.name != "sgd" or o.momentum or o.weight_decay:
            name = config.method.name
            return [
                f"local.optimizer: {name} has its momentum in the direction; it needs sgd without momentum and weight decay"
            ]
        return []

    def sent(self, task: Task, client: ClientContext, carry: Tree) -> Tree:
        """Return `delta`, u_i over the sum of its rates (of running statistics their change), and that sum."""
        moved = tree.sub(carry["model"], client.shared["model"])
        rates = client.info.sum_lr
        return {"delta": {n: d if n in task.buffers else d / rates for n, d in moved.items()}, "steps": rates}

    def moved(self, state: Tree, got: Replies, task: Task) -> tuple[Tree, Tree]:
        """Return the next model, x - gamma g with gamma = server_lr times the mean of K_i lr, and the next g."""
        delta = got.folded["delta"]
        gamma = self.settings.server_lr * float(got.folded["steps"])
        model = tree.add(state["model"], delta, gamma)
        return task.keep_averages(model, state["model"], delta), tree.scale(delta, -1.0)
