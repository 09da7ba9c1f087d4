"""What a method is: settings, a wire, visits for one client, a server program, and the model each client is served.

A complete method that averages a number:

    class Average(Method):
        wire = Wire(down={}, up={"x": Part("scalar")}, server={"mean": Part("scalar")})

        def tell(self, task):
            def begin(info, shared, mine, own): return {}
            def end(info, carry, shared, mine, own): return {"x": info.examples.double()}, own
            return Visit(begin, (), end)

        def init(self, task, key): return {"mean": torch.zeros(())}

        def round(self, state, fed, task):
            got = fed.ask(self.tell, fed.sample(), fold=mean("x", weight="one"))
            return {"mean": got.folded["x"]}

Nothing lives on `self` but settings: server state is what `init` and `round` return, client state what visits return.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rayfed import tree
from rayfed.config.schema import Section
from rayfed.metrics import NO_LOGS
from rayfed.visit import Info, Visit

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.fed import Fed
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree


class MethodSettings(Section):
    """A method's own settings: frozen, strict, each field with a sentence and its unit."""


class Part(NamedTuple):
    """A named part of a payload or a state.

    like: "params", "params of lora_A, head" (see `Task.some_params`), "scalar", "(C,) int64", "K x params", "any"; update:
    transforms act on it; private: never leaves the client; note: one sentence; routed: a stack of K rows of which a
    deployment sends each client only one (its cluster's, or a mixture made at the server), so that `bytes/down` counts one.
    """

    like: str
    update: bool = False
    private: bool = False
    note: str = ""
    routed: bool = False


class Wire(NamedTuple):
    """What travels and what is kept: down and up (wire), keep (a client's state), server (the server's state)."""

    down: dict[str, Part] = {}  # noqa: RUF012  (a NamedTuple's default, never written to)
    up: dict[str, Part] = {}  # noqa: RUF012
    keep: dict[str, Part] = {}  # noqa: RUF012
    server: dict[str, Part] = {}  # noqa: RUF012


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
        """Rules across settings and data, told before anything starts: sentences for why this cannot run on it."""
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
        """(shared, mine, own) -> {"model": the parameters this client is served}, built at the client."""

        def begin(info: Info, shared: Tree, mine: Tree, own: Tree) -> Tree:
            return {}

        def end(info: Info, carry: Tree, shared: Tree, mine: Tree, own: Tree) -> tuple[Tree, Tree]:
            return {"model": shared["model"]}, own

        return Visit(begin, (), end)

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
