"""What a method is: settings, a wire, visits for one client, a server program, and the model each client is served.

Nothing lives on `self` but settings: server state is what `init` and `round` return, client state what visits return.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rayfed import clock, tree
from rayfed.config.schema import Section
from rayfed.metrics import NO_LOGS
from rayfed.visits import Visit, model_of
from rayfed.wire import Wire

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.fed import Fed
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree


class MethodSettings(Section):
    """A method's own settings: frozen, strict, each field with a sentence and its unit."""


class Method:
    """Describe an algorithm: what travels, what one client does, what the server does, and what each client is served.

    A subclass declares `wire`, defines its visits with `@visit` and its server program `round`; everything else has a default.

    Class attributes:
        Settings: the method's own settings, each field with its range and a sentence.
        wire: the parts that travel (`down`, `up`) and that are kept (`keep` at clients, `server`).
        needs: what it needs of the task, words of `rayfed.task.OFFERS` and "columns:NAME"; checked before anything starts.
        universal: the part of the server state that is the one global model; None if there is none.
        first_family: whether the one global model is a network of the first family, where clients have several: a server that has a
        model of
            its own and sends no weights.
        sums_only: whether `round` reads nothing of its replies but means and sums of updates: not who or how many replied, no single
            reply. Differential privacy is claimed only where it is so.
        no_buffers: why the method cannot have a network that writes buffers in training (running statistics, counters), as the end
            of a sentence; None if it can.
        no_rule: why a rule of aggregation (`aggregate`) cannot take the place of its mean, as the end of a sentence; None if it can.
        no_privacy: why its clients cannot take the gradients of `local.privacy`, of one example at a time and with noise, as the end of
            a sentence: they train by steps of their own, or by numbers of a whole batch; None if they can.
        reads_rows: whether its batches carry `row` (B,) int64, the number of each row in the data.
        trains: whether clients train models, which scope `local` scores in passing.
        logs: of each name given to `fed.log` what it is and in which unit, name -> (sentence, unit).

    Arguments:
        settings: an instance of `Settings`.
        config: the run's config; `self.local` is its section of local training.

    Raises TypeError in the first round if there is no `round`, and where what travels or is kept is not what `wire` declares.

    Example: FedAvg whose server goes only a part of the way.

        >>> from pydantic import Field
        >>> from rayfed import PARAMS, Method, MethodSettings, Part, Wire, mean, sgd_visit, tree, visit
        >>> class Damped(Method):
        ...     class Settings(MethodSettings):
        ...         eta: float = Field(0.5, gt=0, description="Step of the server.")
        ...
        ...     wire = Wire(
        ...         down={"model": Part(PARAMS)}, up={"delta": Part(PARAMS, update=True)}, server={"model": Part(PARAMS)}
        ...     )
        ...
        ...     @visit
        ...     def train(self, task):
        ...         return sgd_visit(task.loss, self.local)
        ...
        ...     def round(self, state, fed, task):
        ...         got = fed.ask(self.train, fed.sample(), shared=state, fold=mean("delta"))
        ...         return {"model": tree.add(state["model"], got.folded["delta"], self.settings.eta)}
        >>> config = {"task": {"data": "digits", "model": "linear"}, "federation": {"clients": 4}, "rounds": 1}
        >>> run = rayfed.run({**config, "method": {"name": Damped, "eta": 0.8}}, local=True)
        >>> run.config["method"]["eta"]
        0.8
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    wire: ClassVar[Wire] = Wire()
    logs: ClassVar[Mapping[str, tuple[str, str]]] = NO_LOGS
    needs: ClassVar[frozenset[str]] = frozenset()
    universal: ClassVar[str | None] = "model"
    first_family: ClassVar[bool] = False
    sums_only: ClassVar[bool] = False
    no_buffers: ClassVar[str | None] = None
    no_rule: ClassVar[str | None] = None
    no_privacy: ClassVar[str | None] = None
    reads_rows: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    def __init__(self, settings: Any, config: Config):
        self.settings, self.config, self.local = settings, config, config.local

    def check(self, config: Config) -> list[str]:
        """Return sentences for settings that do not fit together; none by default."""
        return []

    def fits(self, federation: Federation) -> list[str]:
        """Return sentences for why this cannot run on a federation's data; none by default. Asked before anything starts."""
        return []

    def fits_model(self, task: Task) -> list[str]:
        """Return sentences for why this cannot train a task's model (layers that it does not have, say); none by default. Asked
        before anything starts, in a process that has torch, of methods that define it."""
        return []

    def reads_rounds(self) -> str | None:
        """Return the setting by which what a round computes follows from the number of all rounds; None, as by default, where it
        does not. A run of such a method is not resumed with other `rounds`: it would be neither run."""
        return None

    def visit_steps(self, federation: Federation) -> np.ndarray:
        """Return the local steps of each client's visit, (clients,), of which simulated time is made (`devices`); by default those of
        `local.steps` or `local.epochs`."""
        return clock.local_steps(self.config, federation)

    def splits_model(self) -> bool:
        """Return whether it needs `Task.features`: a model that ends in a linear layer on features (B, d); False by default."""
        return False

    def init(self, task: Task, key: int) -> Tree:
        """Return the server state before round 1; its part names are those of `wire.server`. By default {"model": fresh parameters}."""
        return {"model": task.init_params(key)}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        """Return the next server state. Clients are reached only through `fed`; TypeError where a method does not define it."""
        raise TypeError(f"{type(self).__name__} has no server program: define `round(self, state, fed, task)`")

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        """Return a client's state before its first visit; its part names are those of `wire.keep`. By default none."""
        return {}

    def serve(self, state: Tree) -> Tree:
        """Return what evaluation broadcasts to every client; by default {"model": the server state's}."""
        return {"model": state["model"]}

    def mine(self, state: Tree, client: int) -> Tree | None:
        """Return a small tree for one client in addition to `serve`, with the same names for all clients, even one never seen; or None."""
        return None

    def view(self, task: Task) -> Visit:
        """Return the visit that gives {"model": what this client is served}, built at the client; by default the shared model."""
        return model_of(lambda client: client.shared["model"])

    def logits(self, task: Task, model: Tree, x: Tensor) -> Tensor:
        """Return logits (B, C) of what `view` gives, for inputs (B, *input_shape); overridden where that is more than one
        network's parameters (two models' sum, a mixture that depends on the input); also of the universal model where that is such a tree.
        Of such a tree `evaluate.finetune_epochs` trains the entry `own`."""
        return task.apply(model, x)

    def cost(self, part: str, sent: Tree) -> int:
        """Return the bytes on the wire of a part that k clients send or are sent, leaves (k, ...), in the method's own encoding."""
        return tree.nbytes(sent)

    def clusters(self, state: Tree) -> dict[int, int] | None:
        """Return client -> cluster id for every client that has one; None if the method does not cluster."""
        return None

    def experts(self, state: Tree) -> dict[int, Tree] | None:
        """Return cluster id -> parameters of its expert; None if the method has none."""
        return None
