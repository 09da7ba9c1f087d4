"""FedAU: each client's weight is learnt from the gaps between its visits, where nobody knows how often clients come."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, MethodSettings, Need, Part, Wire, mean, participation, transform, tree
from rayfed.lazy import torch
from rayfed.methods._bases import intervals
from rayfed.methods._bases.one_model import OneModel

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Fed, Task, Tree
    from rayfed.config.schema import Config


class FedAU(OneModel):
    """Wang and Ji 2024, "A Lightweight Method for Tackling Unknown Participation Statistics in Federated Averaging" (ICLR 2024,
    2306.03401).

    Client i: as FedAvg. Server: x^{r+1} = x^r + server_lr / N sum_S omega_i u_i, N all clients. omega_i is the mean of i's intervals
    from visit to visit so far, 1 before the first; one that has lasted `cutoff` rounds ends without a visit, so that
    omega_i <= cutoff. A round's own interval counts from the next one on, and rounds without anybody count. Where client i comes
    with chance p_i, omega_i goes to 1 / p_i.
    `weights: one` (the code's average_all) and `known` (1 / p_i of `federation.participation`) are what it is compared with.
    It is for clients that come by themselves: bernoulli, markov, periodic, trace.
    Down: the model (P floats). Up: the update (P). Kept at clients: nothing. At the server: x, three numbers per client.
    """

    no_buffers = "its weights do not sum to one, and running statistics cannot be added up with them"
    no_rule = "updates are divided by the number of all clients, which is no mean over the replies"

    class Settings(MethodSettings):
        needs: ClassVar = {"cutoff": (Need("weights", ("learned",)),)}

        server_lr: float = Field(1.0, gt=0, description="Step of the server along the weighted sum over N.")
        cutoff: int = Field(50, ge=1, description="Longest interval, in rounds; bounds the weights.")
        weights: Literal["learned", "one", "known"] = Field(
            "learned", description="Weights by intervals, equal, or 1 / p_i."
        )

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS),
            "omega": Part(SCALAR, note="the server's weight for the client; nothing in a deployment"),
        },
        up={"delta": Part(PARAMS, update=True)},
        server={"model": Part(PARAMS), **intervals.PARTS},
    )

    def check(self, config: Config) -> list[str]:
        return [
            *(participation.unknown(config) if self.settings.weights == "known" else []),
            *transform.own_weights(config, "its own weights, 1 / p_i"),
        ]

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part == "omega" else super().cost(part, sent)

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), **intervals.start(task.population)}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        record: Tree = {n: state[n] for n in intervals.PARTS}
        omega, to = self._omega(record, fed), fed.sample()
        got = fed.ask(
            self.train, to, shared={"model": state["model"]}, mine={c: {"omega": omega[c]} for c in to},
            fold=mean("delta", weight="omega", denominator=fed.population),
        )  # fmt: skip
        model = tree.add(state["model"], got.folded["delta"], s.server_lr)
        return {"model": model, **intervals.after(record, got.ids, s.cutoff)}

    def _omega(self, record: Tree, fed: Fed) -> Tensor:
        if self.settings.weights == "known":
            return 1 / fed.chances()
        return intervals.weights(record) if self.settings.weights == "learned" else torch.ones_like(record["interval"])
