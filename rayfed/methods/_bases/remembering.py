"""What methods share whose server remembers every client's last update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayfed import PARAMS, Method, Part, attack, sgd_visit, tree, visit

if TYPE_CHECKING:
    from rayfed import ClientContext, Task, Tree, Visit
    from rayfed.config.schema import Config

UP = {"delta": Part(PARAMS, update=True), "old": Part(PARAMS, note="h_i, which a deployment's server holds")}
KEEP = {"h_i": Part(PARAMS, note="the client's last update: the server's memory, held where the client states are")}


class Remembering(Method):
    """Base: h_i, the last update of client i, lies with its state, and what of it moves costs nothing, for a deployment's server
    holds it (N P floats). `train` sends the update and the h_i before it."""

    no_buffers = "running statistics of a round long ago have no use, and its weights need not sum to one"
    no_rule = "what is remembered is taken off fresh updates: the mean of both, of which a rule would judge one"
    free: tuple[str, ...] = ("old",)  # parts that do not travel in a deployment

    def check(self, config: Config) -> list[str]:
        return memory_problems(config)

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


def memory_problems(config: Config) -> list[str]:
    """Return what is wrong where updates are remembered as clients make them: a server remembers what reaches it."""
    changed = {"transforms": [t.kind for t in config.transforms], "attacks": attack.on_updates(config)}
    name, allowed = config.method.name, {"transforms": "none", "attacks": "attacks on data"}
    return [
        f"{section}: {', '.join(kinds)} found, {name} remembers updates as clients make them, which would not reach its server; "
        f"allowed: {allowed[section]}"
        for section, kinds in changed.items()
        if kinds
    ]
