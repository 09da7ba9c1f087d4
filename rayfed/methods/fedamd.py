"""FedAMD: some of a round's clients refresh their full gradients, the others take variance-reduced steps along the mean of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import (
    PARAMS,
    Method,
    MethodSettings,
    Part,
    Phase,
    Visit,
    Wire,
    keys,
    mean,
    sgd_visit,
    total,
    tree,
    visit,
)
from rayfed.lazy import torch
from rayfed.training import gradient
from rayfed.visits import once
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config


class FedAMD(Method):
    """Wu et al. 2023, "Anchor Sampling for Federated Learning with Partial Client Participation" (ICML 2023, 2206.05891).

    Each client of a round is an anchor with probability `anchors`, else a miner; with `period` T all are anchors in every T-th
    round, the first among them, and miners in the others. g = (1 / N) sum over all clients of v_i, before the round's anchors.
    Anchor i: v_i <- grad F_i(x^r) over all its training data; sends the change. Miner i: D_0 = g, then for each step
    D_k = D_{k-1} + grad F_i(y_k; b) - grad F_i(y_{k-1}; b), y_{k+1} = y_k - lr D_k, on one minibatch b with one key; the first
    step is lr g exactly. Server, uniform: x^{r+1} = x^r + server_lr mean over the miners of u_i; anchors do not move the model.
    Before the first round that has clients everybody is an anchor once, which counts in the bytes; who does not reply is asked again
    before the next round. Until i has been an anchor, and with `everyone_first: false`, v_i = 0 [inferred].
    Down: x; to miners g too. Up: P floats. Kept at clients: nothing. At the server: x, g, and v_i of every client ((N + 2) P), here
    with the clients' states.
    """

    no_buffers = "it takes gradients at two points of one step, whose running statistics differ"
    no_privacy = "steps by the difference of two gradients"

    class Settings(MethodSettings):
        anchors: float = Field(0.3, gt=0, lt=1, description="Probability that a client of a round is an anchor.")
        period: int | None = Field(
            None, ge=2, description="Rounds from one of anchors alone to the next; null: by probability."
        )
        server_lr: float = Field(1.0, gt=0, description="Step of the server along the miners' mean update.")
        everyone_first: bool = Field(True, description="Whether all clients compute v_i before the first round.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS), "g": Part(PARAMS, note="mean of v_i over all clients")},
        up={"delta": Part(PARAMS, update=True), "dv": Part(PARAMS, note="v_i's change")},
        keep={"v_i": Part(PARAMS, note="last full gradient: the server's memory, held where the client states are")},
        server={
            "model": Part(PARAMS),
            "g": Part(PARAMS),
            "begun": Part(tensor("N"), note="1 for each client with a v_i"),
        },
    )

    def check(self, config: Config) -> list[str]:
        o, s = config.local.optimizer, config.local.schedule
        if o.name != "sgd" or o.momentum or o.weight_decay:
            return [
                "local.optimizer: fedamd's steps go along its own direction; it needs sgd without momentum and weight decay"
            ]
        return (
            ["local.schedule.within: fedamd knows one rate in a visit; allowed: constant"]
            if s.within != "constant"
            else []
        )

    def init(self, task: Task, key: int) -> Tree:
        return {
            "model": task.init_params(key),
            "g": tree.zeros(task.params_like),
            "begun": torch.zeros(task.population),
        }

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"v_i": tree.zeros(task.params_like)}

    @visit
    def refresh(self, task: Task) -> Visit:
        """An anchor's full gradient."""

        def begin(client: ClientContext) -> Tree:
            x = client.shared["model"]
            return {"model": x, "sum": tree.zeros(x), "n": torch.zeros((), dtype=task.dtype, device=task.device)}

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            rows = batch["w"].sum()
            g = gradient(task.loss, carry["model"], batch, key)
            return {**carry, "sum": tree.add(carry["sum"], g, rows), "n": carry["n"] + rows}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            v = tree.scale(carry["sum"], 1 / carry["n"].clamp(min=1))
            return {"dv": tree.sub(v, client.own["v_i"])}, {"v_i": v}

        return Visit(begin, [Phase(once(), step, counts=False)], end)

    @visit
    def train(self, task: Task) -> Visit:
        """A miner's steps."""

        def start(client: ClientContext) -> Tree:
            x = client.shared["model"]
            return {"model": x, "last": x, "direction": client.shared["g"]}

        def direction(params: Tree, carry: Tree, batch: Any, key: Any) -> tuple[Tree, Tree]:
            here, there = (gradient(task.loss, p, batch, key) for p in (params, carry["last"]))
            d = tree.add(carry["direction"], tree.sub(here, there))
            return d, {"direction": d, "last": params}

        return sgd_visit(task.loss, self.local, start=start, grad=direction)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        clients = fed.sample()
        if not clients:
            return state
        missing = (state["begun"] == 0).nonzero()[:, 0].tolist()
        if self.settings.everyone_first and missing:
            state = self._refreshed(state, missing, fed)
        anchors, miners = self._roles(clients, fed)
        model = state["model"]
        if miners:
            got = fed.ask(
                self.train, miners, shared={"model": model, "g": state["g"]}, fold=mean("delta", weight="one")
            )
            model = tree.add(model, got.folded["delta"], self.settings.server_lr)
        if anchors:
            state = self._refreshed(state, anchors, fed)
        return {**state, "model": model}

    def _refreshed(self, state: Tree, clients: list[int], fed: Fed) -> Tree:
        """Return the state after clients have taken full gradients at its model."""
        got = fed.ask(self.refresh, clients, shared={"model": state["model"]}, fold=total("dv"))
        begun = state["begun"].clone()
        begun[list(got.ids)] = 1
        return {**state, "g": tree.add(state["g"], got.folded["dv"], 1 / fed.population), "begun": begun}

    def _roles(self, clients: tuple[int, ...], fed: Fed) -> tuple[list[int], list[int]]:
        """Return (anchors, miners) of a round's clients."""
        s = self.settings
        if s.period:
            return (list(clients), []) if (fed.round - 1) % s.period == 0 else ([], list(clients))
        is_anchor = keys.numpy(fed.key("anchors")).random(fed.population) < s.anchors
        return [c for c in clients if is_anchor[c]], [c for c in clients if not is_anchor[c]]
