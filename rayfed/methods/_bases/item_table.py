"""What methods of recommendation share whose server has one table of item vectors, and whose users keep the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed import Method, params_of

if TYPE_CHECKING:
    from rayfed import Task, Tree
    from rayfed.config.schema import Config

ITEMS = params_of("items")


class ItemTable(Method):
    """Base: the server has the item table, which every user is sent.

    Class attribute:
        linear: whether a user's score is linear in an item's vector, so that `task.model: ncf` is refused.
    """

    linear: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"items"})
    universal = None

    def check(self, config: Config) -> list[str]:
        if self.linear and config.task.model.name == "ncf":
            return [
                f"task.model: ncf found, {config.method.name}'s score function is linear in an item's vector; allowed: factors"
            ]
        return []

    def init(self, task: Task, key: int) -> Tree:
        return {"items": ITEMS.select(task.init_params(key), task)}

    def serve(self, state: Tree) -> Tree:
        return {"items": state["items"]}


def at_own_rate(config: Config, what: str) -> list[str]:
    """Return why a local optimizer cannot be used, [] for SGD without decay; what: has a rate of its own, as the end of a sentence."""
    o = config.local.optimizer
    if (o.name, o.weight_decay) == ("sgd", 0.0):
        return []
    return [f"local.optimizer: {o.name} found, {config.method.name}'s {what}; allowed: sgd without decay"]
