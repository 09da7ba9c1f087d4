"""What methods share whose clients keep some layers to themselves while the others are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from rayfed import PARAMS, SCALAR, Method, Part, Wire, mean, model_of, params_of, sgd_visit, tree, visit
from rayfed.errors import nearest
from rayfed.lazy import torch
from rayfed.task import needs_classes, of

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.visits import Over
    from rayfed.wire import Params


def head_problems(federation: Federation, words: Sequence[str]) -> list[str]:
    """Return what `Method.fits` says where `head` is among a setting's words and the task's networks have none: language models."""
    without = "head" in words and "tokens" in of(federation.task).offers
    return needs_classes(federation, "`head` is a classifier's layer") if without else []


def split_wire(private: Params) -> Wire:
    """Return the wire of a method whose clients keep the entries that a shape takes, and share all others."""
    shared = replace(private, others=not private.others)
    return Wire(
        down={"model": Part(shared)},
        up={"delta": Part(shared, update=True)},
        keep={"own": Part(private, private=True, note="p_i"), "visits": Part(SCALAR, private=True)},
        server={"model": Part(PARAMS)},
    )


def missing_layers(setting: str, words: Sequence[str], task: Task) -> list[str]:
    """Return a sentence for each word of a method's setting that names no entry of the model."""
    pieces = sorted({piece for n in task.params_like for piece in n.split(".")} | ({"head"} if task.head else set()))
    return [
        f"method.{setting}: {word!r} found, no entry of the model has it between its dots{nearest(word, pieces)}; "
        f"allowed: {', '.join(pieces)}"
        for word in words
        if not params_of(word).select(task.params_like, task)
    ]


class PrivateLayers(Method):
    """Base: entries p of the model are each client's own, FedAvg on the rest.

    Client i trains x^r with its own p_i in it, keeps what p_i became and sends the update u_i of the rest; server:
    x^{r+1} = x^r + sum_i w_i u_i. p_i^0 is that of the run's initial model, which a client that was never asked is served.

    named: the setting that names layers, each of whose words must name something; None where there may be nothing to name.
    """

    named: ClassVar[str | None] = None

    def __init__(self, settings: Any, config: Config):
        super().__init__(settings, config)
        self.wire = split_wire(self.private)  # type: ignore[misc]

    @property
    def private(self) -> Params:
        """Return the shape of what stays at the client."""
        raise TypeError(f"{type(self).__name__} does not say which layers are private")

    @property
    def weight(self) -> str:
        """Return the weights w_i of the mean: "examples" (n_i / n) or "one"."""
        return "examples"

    def phases(self, task: Task) -> Sequence[tuple[Over, Callable[[str], bool]]] | None:
        """Return pairs (over, which entries move), as `sgd_visit` takes them; None, as by default, where all entries train together."""
        return None

    def fits(self, federation: Federation) -> list[str]:
        return head_problems(federation, self.private.words)

    def fits_model(self, task: Task) -> list[str]:
        if self.named is None:
            return []
        words, entries = self.private.words, task.params_like
        if found := missing_layers(self.named, words, task):
            return found
        if len(self.private.select(entries, task)) < len(entries):
            return []
        return [
            f"method.{self.named}: {', '.join(words)} found, which leaves nothing to share; allowed: fewer layers, or "
            "method.name: local_only"
        ]

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"own": self.private.select(task.initial, task), "visits": torch.zeros(())}

    @visit
    def train(self, task: Task) -> Visit:
        own = self.private.select(task.params_like, task)

        def start(client: ClientContext) -> Tree:
            return {"model": {n: {**client.shared["model"], **client.own["own"]}[n] for n in task.params_like}}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            model = carry["model"]
            delta = {n: model[n] - p for n, p in client.shared["model"].items()}
            return {"delta": delta}, {"own": {n: model[n] for n in own}, "visits": client.own["visits"] + 1}

        return sgd_visit(task.loss, self.local, start=start, end=end, phases=self.phases(task))

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        own = self.private.select(state["model"], task)
        rest = {n: p for n, p in state["model"].items() if n not in own}
        got = fed.ask(self.train, fed.sample(), shared={"model": rest}, fold=mean("delta", weight=self.weight))
        return {"model": {**state["model"], **tree.add(rest, got.folded["delta"])}}

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: {**client.shared["model"], **client.own["own"]})
