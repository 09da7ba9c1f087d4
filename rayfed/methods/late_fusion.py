"""Late fusion: each modality's encoder is trained and averaged by the clients that have it, the classifier by all."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Wire, mean, sgd_visit, total, tree, visit
from rayfed.methods._bases.over_modalities import OverModalities, nothing, owned, without_others
from rayfed.wire import tensor

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.task.modalities import Modalities


class LateFusion(OverModalities):
    """FedAvg (McMahan et al. 2017, 1602.05629) of a network with an encoder for each modality; no paper of its own, the common baseline
    of works on clients that lack modalities.

    Client i: y <- x^r, E epochs of minibatch SGD; sends u_i = y - x^r, 0 in the encoders of modalities of which it has no row, and which
    it has. Server, K_m the round's clients that have modality m: the encoder of m moves by the mean of u_i over K_m weighted by n_i, all
    else by that over all clients. Under `average: all` encoders move by the mean over everybody, zeros among them: plain FedAvg, to the
    bit.
    Down: the model (P floats). Up: the update (its own encoders and what is common), which modalities it has (M bits), n_i.
    Kept at clients: nothing. At the server: the model.
    """

    class Settings(MethodSettings):
        average: Literal["owners", "all"] = Field(
            "owners", description="Over whom a modality's encoder is averaged: who has it, or everybody (FedAvg)."
        )

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS, update=True), "has": Part(tensor("M"), note="1 for each modality that it has")},
        server={"model": Part(PARAMS)},
    )
    no_rule = "its encoders are averaged over their owners"

    def cost(self, part: str, sent: Tree) -> int:
        """Return bytes without the encoders of modalities that a client lacks, which are not sent."""
        return without_others(sent) if part == "delta" else tree.nbytes(sent)

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "rows": nothing(task)}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            delta = tree.sub(carry["model"], client.shared["model"])
            has = (carry["rows"] > 0).to(task.dtype)
            return {
                "delta": delta if self.settings.average == "all" else owned(task, delta, has),
                "has": has,
            }, client.own

        return sgd_visit(task.loss, self.local, start=start, end=end, before=[self.counting(task)])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        folds = (mean("delta"), total("has", weight="examples"))
        got = fed.ask(self.train, fed.sample(), shared=state, fold=folds)
        delta = got.folded["delta"]
        if got.ids and self.settings.average == "owners":
            of: Modalities = task  # type: ignore[assignment]
            for m, rows in zip(task.modalities, got.folded["has"].tolist(), strict=True):
                share = got.weight["delta"] / rows if rows else 1.0  # a mean over all to one over its owners
                delta |= {n: delta[n] * share for n in of.of_modality(m.name)}
        return {"model": tree.add(state["model"], delta)}
