"""FedAgain: dual-signal trust; a client counts by how well its model does and how near it is to the others'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import (
    PARAMS,
    SCALAR,
    MethodSettings,
    Need,
    Part,
    Phase,
    Visit,
    Wire,
    attack,
    mean,
    sgd_visit,
    transform,
    tree,
    visit,
)
from rayfed.lazy import torch
from rayfed.methods._bases.one_model import OneModel
from rayfed.visits import accumulate, average, once
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation

UNSEEN = -1.0  # the trust of a client that never took part


class FedAgain(OneModel):
    """Dual-signal trust of "FedAgain: A Trust-Based and Robust FL Strategy" (2603.19512), and of a paper before it on autoencoders for
    kidney stones (2025). No formula of theirs is public: all of these are ours, for the two signals that the abstracts name.

    Client i: y_i by local training from x, sends u_i = y_i - x and e_i, its mean loss under y_i (on its validation rows where
    `federation.split.val` gives it some, else on its training rows); under `signal: benchmark` the server works out e_i on
    `federation.public`, where no client can lie. D_i = ||y_i - z||, z the coordinate-wise median of the round's models.
    T_i = exp(-a max(0, e_i / med_j e_j - 1)) exp(-b max(0, D_i / med_j D_j - 1)), then `memory` of a client's own trust before:
    T_i <- memory T_i' + (1 - memory) T_i. Server: x <- x + sum_i n_i T_i u_i / sum_j n_j T_j; the coordinate-wise median of the
    updates where all trust is 0. An error that is no number has trust 0; a client without validation rows has the median of the others'.
    Where trust is the same for all it is FedAvg, to the bit.
    `trust: reciprocal`, of a summary of the second paper: T_i = 1 / (e_i ||u_i|| + 1e-4), e_i of x on client i's rows,
    weights T_i / sum_j T_j.
    Down: the model (P floats). Up: the update (P), n_i, e_i (1 or 2 numbers). Kept at clients: nothing. At the server: x, one number each.
    """

    no_rule = "it has a rule of its own, trust"

    class Settings(MethodSettings):
        needs: ClassVar = {
            "a": (Need("trust", ("dual",)),),
            "b": (Need("trust", ("dual",)),),
            "center": (Need("trust", ("dual",)),),
            "relative": (Need("trust", ("dual",)), Need("signal", ("own",))),
        }

        a: float = Field(2.0, ge=0, description="How fast trust falls with a client's error; 0: it does not count.")
        b: float = Field(2.0, ge=0, description="How fast trust falls with a model's distance; 0: it does not count.")
        memory: float = Field(0.5, ge=0, lt=1, description="Weight of a client's trust before; 0: no memory.")
        signal: Literal["own", "benchmark"] = Field(
            "own", description="Who works out the error: the client, or the server on the public set."
        )
        relative: bool = Field(False, description="Whether the error is divided by that of the received model.")
        center: Literal["median", "received"] = Field(
            "median", description="What models are far from: the median of the round's, or the received one."
        )
        trust: Literal["dual", "reciprocal"] = Field("dual", description="Formula of trust.")

    logs: ClassVar = {
        "trust/least": ("smallest trust of a round's clients", "0 to 1, reciprocal: any"),
        "trust/honest": ("share of the round's weights that clients who do not attack got", "fraction"),
    }
    wire: ClassVar[Wire] = OneModel.wire._replace(
        up={
            "delta": Part(PARAMS, update=True),
            "error": Part(SCALAR, note="e_i; under `signal: benchmark` nothing is sent"),
            "received": Part(SCALAR, note="loss of x on its rows, where trust reads it"),
        },
        server={"model": Part(PARAMS), "trust": Part(tensor("N"), note="-1 for a client that never took part")},
    )

    def check(self, config: Config) -> list[str]:
        return transform.own_weights(config, "its own weights, trust")

    def fits(self, federation: Federation) -> list[str]:
        from rayfed.task import of

        if self.settings.signal == "own":
            return []
        if not len(federation.public):
            return [
                "method.signal: benchmark found, which needs rows at the server; allowed: own, or federation.public: {rows: N}"
            ]
        if not federation.public_labels and "reconstructions" not in of(federation.task).offers:
            return [
                "method.signal: benchmark found, and the public set has no labels; allowed: federation.public.labels: true"
            ]
        return []

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), "trust": torch.full((task.population,), UNSEEN, dtype=torch.float64)}

    @visit
    def train(self, task: Task) -> Visit:
        s, made = self.settings, sgd_visit(task.loss, self.local)
        if s.signal == "benchmark":
            return made
        measured = once("val" if self.config.federation.split.val else "train")

        def begin(client: ClientContext) -> Tree:
            zero = torch.zeros((), dtype=task.dtype, device=task.device)
            none = {"sum": {"loss": zero}, "n": zero}
            return {**made.begin(client), "error": none, "received": none}

        def of(entry: str) -> Phase:
            def step(carry: Tree, batch: Any, key: Any) -> Tree:
                rows = {"loss": task.loss(carry["model"], batch)}
                return {**carry, entry: accumulate(carry[entry], rows, batch["w"])}

            return Phase(measured, step, counts=False)

        before = s.relative or s.trust == "reciprocal"

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent, own = made.end(client, carry)
            errors = {n: average(carry[n])["loss"] for n in ("error", *(["received"] if before else []))}
            return {**sent, **errors}, own

        phases = [*([of("received")] if before else []), *made.phases, of("error")]
        return Visit(begin, phases, end, made.vectorize, made.local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        fold = mean("delta", weight="examples")
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=fold, keep="delta")
        if not got.ids:
            return {**state, "model": tree.add(state["model"], got.folded["delta"])}
        updates = got.stacked("delta")
        now = self._trust(self._errors(got, updates, state["model"], fed, task), tree.without(updates, task.buffers))
        before = state["trust"][got.ids]
        now = torch.where(before == UNSEEN, now, now + self.settings.memory * (before - now))
        share = now if self.settings.trust == "reciprocal" else now * got.examples
        fed.log("trust/least", float(now.min()))
        if len(everyone := attack.everyone(self.config)):
            honest = torch.as_tensor(~np.isin(got.ids, everyone))
            fed.log("trust/honest", float(share[honest].sum() / share.sum().clamp(min=1e-300)))
        if self.settings.trust == "dual" and bool((now == now[0]).all()) and float(now[0]):
            update = got.folded["delta"]  # FedAvg's own sum, to the bit
        elif float(share.sum()):
            (update,) = got.linear("delta", (share / share.sum())[None])
        else:
            update = tree.map(median, updates)
        trust = state["trust"].index_put((torch.tensor(got.ids),), now)
        return {"model": tree.add(state["model"], update), "trust": trust}

    def _errors(self, got: Replies, updates: Tree, model: Tree, fed: Fed, task: Task) -> Tensor:
        """Return the error of each reply, (n,) float64."""
        s = self.settings
        if s.signal == "own":
            error = got.stacked("received" if s.trust == "reciprocal" else "error").double()
            if s.relative and s.trust == "dual":
                error = error / got.stacked("received").double()
            measured = np.asarray(
                (fed.federation.val if self.config.federation.split.val else fed.federation.train).sizes()
            )
            blind = torch.as_tensor(measured[got.ids] == 0)
            return torch.where(blind, median(error[~blind]), error) if blind.any() and not blind.all() else error
        public = fed.public()
        with torch.no_grad():
            losses = [task.loss(tree.add(model, u), public).mean() for u in tree.unstack(updates)]
        return torch.stack(losses).double()

    def _trust(self, error: Tensor, updates: Tree) -> Tensor:
        """Return trust by this round alone, (n,) float64, of errors (n,) and updates with leaves (n, ...)."""
        s, error = self.settings, torch.where(error.isfinite(), error, torch.inf)  # NaN would spoil the median
        rows = torch.cat([x.flatten(1) for x in tree.values(updates)], 1).double()
        if s.trust == "reciprocal":
            found = 1 / (error * rows.norm(dim=1) + 1e-4)
        else:
            away = (rows - median(rows) if s.center == "median" else rows).norm(dim=1)
            found = torch.exp(-s.a * (over_median(error) - 1).clamp(min=0))
            found = found * torch.exp(-s.b * (over_median(away) - 1).clamp(min=0))
        return torch.where(error.isfinite(), found, 0.0)


def median(x: Tensor) -> Tensor:
    """Return the median along the first axis, of an even number the mean of the middle two."""
    ordered = x.sort(0).values
    return (ordered[(len(x) - 1) // 2] + ordered[len(x) // 2]) / 2


def over_median(x: Tensor) -> Tensor:
    """Return numbers (n,) over their median; 1 where they are equal to it, also of 0."""
    middle = median(x)
    return torch.where(x == middle, 1.0, x / middle)
