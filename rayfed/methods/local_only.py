"""Local-only: every client learns alone; nothing but presence crosses the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed import PARAMS, Method, Part, Wire, model_of, sgd_visit, visit

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class LocalOnly(Method):
    """The no-communication baseline: v_i^0 = x^0 (the run's common initial model); v_i <- E epochs of SGD from v_i.

    Down, up: nothing. Kept at client i: v_i (P floats), through the rounds it skips. At the server: nothing.
    A client that never took part, a held-out one too, is served x^0.
    """

    wire: ClassVar[Wire] = Wire(keep={"model": Part(PARAMS, private=True, note="v_i")})
    universal: ClassVar[str | None] = None

    def init(self, task: Task, key: int) -> Tree:
        return {}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"model": task.initial}

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": client.own["model"]}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {}, {"model": carry["model"]}

        return sgd_visit(task.loss, self.local, start=start, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        fed.ask(self.train, fed.sample())
        return {}

    def serve(self, state: Tree) -> Tree:
        return {}

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: client.own["model"])
