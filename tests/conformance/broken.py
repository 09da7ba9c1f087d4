"""FedAvg, broken in one way in each class: what the checks are for."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from rayfed import tree
from rayfed.execute.tuning import replay
from rayfed.fold import mean
from rayfed.methods.fedavg import FedAvg
from rayfed.training import sgd_visit
from rayfed.visits import Visit, visit
from rayfed.wire import PARAMS, SCALAR, Part, Wire

CALLS = [0]
HISTORY: list[Any] = []


def altered(method: FedAvg, task: Any, f: Any) -> Visit:
    """FedAvg's visit whose update went through `f`."""
    visit = sgd_visit(task.loss, method.local)

    def end(client: Any, carry: Any) -> Any:
        parts, own = visit.end(client, carry)
        return {"delta": tree.map(f, parts["delta"])}, own

    return visit._replace(end=end)


class NotFinite(FedAvg):
    """Divides by zero at the server."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        return {"model": tree.scale(super().round(state, fed, task)["model"], float("inf"))}


class Fades(FedAvg):
    """Steps by where in the run a round is, without a word."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        return {"model": tree.scale(super().round(state, fed, task)["model"], 1 - fed.round / fed.rounds / 2)}


class LogsSomething(FedAvg):
    """Logs a name without a meaning."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        fed.log("own/thing", 1.0)
        return super().round(state, fed, task)


class UnkeyedNoise(FedAvg):
    """Randomness that no key decides."""

    @visit
    def train(self, task: Any) -> Visit:
        return altered(self, task, lambda x: x * (1 + torch.rand(())))


class Remembers(FedAvg):
    """A state outside the state."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        self.rounds = getattr(self, "rounds", 0) + 1
        return {"model": tree.scale(super().round(state, fed, task)["model"], 1 / self.rounds)}


class Hoards(FedAvg):
    """Keeps every round's model for good."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        HISTORY.append(super().round(state, fed, task))
        return HISTORY[-1]


def doubled(x: Any) -> Any:
    return x * 2


class GrowingShapes(FedAvg):
    """Works on another shape in each round, so that each is recorded again."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        new = super().round(state, fed, task)
        replay.call(doubled, doubled, torch.zeros(fed.round))
        return new


class Counts(FedAvg):
    """Visits that know how many there were before them."""

    @visit
    def train(self, task: Any) -> Visit:
        def f(x: Any) -> Any:
            CALLS[0] += 1
            return x * (1 + CALLS[0] / 100)

        return altered(self, task, f)


class Undeclared(FedAvg):
    """A server state that the wire does not know."""

    def init(self, task: Any, key: int) -> Any:
        return {**super().init(task, key), "more": torch.zeros(3)}

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        return {**super().round(state, fed, task), "more": state["more"]}


class Leaks(FedAvg):
    """Sends what it calls private."""

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS), "secret": Part(SCALAR)},
        keep={"secret": Part(SCALAR, private=True)},
        server={"model": Part(PARAMS)},
    )

    def own_init(self, task: Any, client: int, key: int) -> Any:
        return {"secret": torch.zeros(())}

    @visit
    def train(self, task: Any) -> Visit:
        visit = sgd_visit(task.loss, self.local)

        def end(client: Any, carry: Any) -> Any:
            return {"delta": visit.end(client, carry)[0]["delta"], **client.own}, client.own

        return visit._replace(end=end)


class NumberInState(FedAvg):
    """A state with a leaf that is no tensor."""

    def init(self, task: Any, key: int) -> Any:
        return {**super().init(task, key), "t": 0.5}

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        return {**super().round(state, fed, task), "t": state["t"] + 1}


class OwnSampler(FedAvg):
    """Asks clients of its own choice."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        got = fed.ask(self.train, range(5), shared={"model": state["model"]}, fold=mean("delta"))
        return {"model": tree.add(state["model"], got.folded["delta"])}


class GlobalGenerator(FedAvg):
    """NumPy's global generator at the server."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        return {"model": tree.scale(super().round(state, fed, task)["model"], 1 + float(np.random.rand()))}


class ServesInPlace(FedAvg):
    """Changes its state when it is served."""

    def serve(self, state: Any) -> Any:
        for x in state["model"].values():
            x += 0.01
        return super().serve(state)


class NobodyIsAnError(FedAvg):
    """Divides by the number of replies."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"))
        return {"model": tree.add(state["model"], got.folded["delta"], len(got) / torch.tensor(float(len(got))))}


class NeverSent(FedAvg):
    """Declares a part that never travels."""

    wire: ClassVar[Wire] = FedAvg.wire._replace(up={**FedAvg.wire.up, "ghost": Part(SCALAR)})


class AsksALambda(FedAvg):
    """Asks for a lambda, which no worker could find."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        fed.ask(lambda task: sgd_visit(task.loss, self.local), fed.sample(), shared=state, fold=mean("delta"))


class AsksAFunction(FedAvg):
    """Asks for a function outside of its class."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        fed.ask(altered, fed.sample(), shared=state, fold=mean("delta"))


class Undecorated(FedAvg):
    """Overrides a visit without decorating it as one."""

    def train(self, task: Any) -> Visit:  # type: ignore[override]
        return sgd_visit(task.loss, self.local)
