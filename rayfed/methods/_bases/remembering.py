"""What methods share whose server remembers every client's last update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayfed import PARAMS, Method, Part, sgd_visit, tree, visit

if TYPE_CHECKING:
    from rayfed import ClientContext, Task, Tree, Visit

UP = {"delta": Part(PARAMS, update=True), "old": Part(PARAMS, note="h_i, which a deployment's server holds")}
KEEP = {"h_i": Part(PARAMS, note="the client's last update: the server's memory, held where the client states are")}


class Remembering(Method):
    """Base: h_i, the last update of client i, lies with its state, and what of it moves costs nothing, for a deployment's server
    holds it (N P floats). `train` sends the update and the h_i before it."""

    no_buffers = "running statistics of a round long ago have no use, and its weights need not sum to one"
    free: tuple[str, ...] = ("old",)  # parts that do not travel in a deployment

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part in self.free else super().cost(part, sent)

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"h_i": tree.zeros(task.params_like)}

    @visit
    def train(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            fresh = tree.sub(carry["model"], client.shared["model"])
            return self.sent(fresh, client.own["h_i"]), {"h_i": fresh}

        return sgd_visit(task.loss, self.local, end=end)

    def sent(self, fresh: Tree, old: Tree) -> Tree:
        """Return the parts that a client sends: its update, and the one that is remembered of it."""
        return {"delta": fresh, "old": old}
