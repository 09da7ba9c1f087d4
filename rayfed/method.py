"""What a method is: settings, a wire, visits for one client, a server program, and the model each client is served.

A complete method that averages a number:

    class Average(Method):
        wire = Wire(up={"x": Part(SCALAR)}, server={"mean": Part(SCALAR)})

        @visit
        def report(self, task):
            def end(client, carry): return {"x": client.info.examples.double()}, client.own
            return Visit(lambda client: {}, (), end)

        def init(self, task, key): return {"mean": torch.zeros(())}

        def round(self, state, fed, task):
            got = fed.ask(self.report, fed.sample(), fold=mean("x", weight="one"))
            return {"mean": got.folded["x"]}

Nothing lives on `self` but settings: server state is what `init` and `round` return, client state what visits return.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rayfed import tree
from rayfed.config.schema import Section
from rayfed.metrics import NO_LOGS
from rayfed.visits import Visit, model_of
from rayfed.wire import Wire

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.fed import Fed
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree


class MethodSettings(Section):
    """A method's own settings: frozen, strict, each field with a sentence and its unit."""


class Method:
    """Base of all methods. `universal` names the part of the server state that is the one global model, if there is one;
    `logs` says of each name that the method gives to `fed.log` what it is and in which unit: name -> (sentence, unit)."""

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    wire: ClassVar[Wire] = Wire()
    logs: ClassVar[Mapping[str, tuple[str, str]]] = NO_LOGS
    universal: ClassVar[str | None] = "model"

    def __init__(self, settings: Any, config: Config):
        self.settings, self.config, self.local = settings, config, config.local

    def check(self, config: Config) -> list[str]:
        """Rules across settings: sentences for what does not fit together."""
        return []

    def fits(self, federation: Federation) -> list[str]:
        """Rules across settings and data, checked before anything starts: sentences for why this cannot run on it."""
        return []

    def init(self, task: Task, key: int) -> Tree:
        """The server state before round 1; its part names are those of `wire.server`."""
        return {"model": task.init_params(key)}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        """One round: the next server state. Clients are reached only through `fed`."""
        raise TypeError(f"{type(self).__name__} has no server program: define `round(self, state, fed, task)`")

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        """A client's state before its first visit; its part names are those of `wire.keep`."""
        return {}

    def serve(self, state: Tree) -> Tree:
        """What evaluation broadcasts to every client, once."""
        return {"model": state["model"]}

    def mine(self, state: Tree, client: int) -> Tree | None:
        """A small tree for one client beside `serve`; the same names for all clients, also for one never seen."""
        return None

    def view(self, task: Task) -> Visit:
        """A visit that gives {"model": the parameters this client is served}, built at the client."""
        return model_of(lambda client: client.shared["model"])

    def logits(self, task: Task, model: Tree, x: Tensor) -> Tensor:
        """Logits (B, C) of what `view` gives, for inputs (B, *input_shape); overridden where that is more than one network's
        parameters (two models' sum, a mixture that depends on the input). Of such a tree `evaluate.finetune_epochs` trains
        the entry `own`."""
        return task.apply(model, x)

    def cost(self, part: str, sent: Tree) -> int:
        """Bytes on the wire of a part that k clients send or are sent, leaves (k, ...), in the method's own encoding."""
        return tree.nbytes(sent)

    def clusters(self, state: Tree) -> dict[int, int] | None:
        """Client -> cluster id for every client that has one; None if the method does not cluster."""
        return None

    def experts(self, state: Tree) -> dict[int, Tree] | None:
        """Cluster id -> parameters of its expert; None if the method has none."""
        return None
