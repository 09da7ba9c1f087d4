"""FedStale: fresh updates, each by its client's chance to come, and a share of what absent clients sent last."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, MethodSettings, Need, Part, Wire, participation, total, tree
from rayfed.lazy import torch
from rayfed.methods._bases import intervals
from rayfed.methods._bases.remembering import KEEP, UP, Remembering

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Fed, Task, Tree
    from rayfed.config.schema import Config


class FedStale(Remembering):
    """Rodio et al. 2024, "FedStale: leveraging stale client updates in federated learning" (ECAI 2024, 2405.04171).

    Client i: as FedAvg; u_i is its update, h_i the last one before, 0 at first, and p_i the chance that it takes part.
    Server: D = sum_S (a_i / p_i) u_i + beta [sum over all N of a_i h_i - sum_S (a_i / p_i) h_i]; x^{r+1} = x^r + server_lr D;
    h_i <- u_i for S. a_i = n_i / n, or 1 / N. beta = 0 is FedAvg with inverse chances, beta = 1 is FedVARP in this form.
    p_i are those of `federation.participation`, or estimated by the mean interval between visits (`chances: estimated`, as FedAU
    does; `cutoff` bounds 1 / p_i). A round without replies changes nothing, as in the published code; `empty: stale` takes the
    step along the stale term, without which the mean step is slightly off. Under a rate that falls, h_i stays as it was made.
    Down: the model (P floats). Up: the update (P). Kept at clients: nothing. At the server: x, sum of a_i h_i, and h_i of every client
    ((N + 2) P), here with the clients' states.
    """

    free = ("old", "moved", "ratio", "share")
    no_rule = "remembered updates are added with fresh ones, each by a weight of its own"

    class Settings(MethodSettings):
        needs: ClassVar = {"cutoff": (Need("chances", ("estimated",)),)}

        beta: float = Field(0.5, ge=0, le=1, description="Weight of stale updates.")
        server_lr: float = Field(1.0, gt=0, description="Step of the server.")
        weight: Literal["examples", "one"] = Field("examples", description="a_i: by examples, or equal.")
        chances: Literal["known", "estimated"] = Field("known", description="Where p_i come from.")
        cutoff: int = Field(50, ge=1, description="Longest interval that the estimate counts, in rounds.")
        empty: Literal["skip", "stale"] = Field("skip", description="What a round without replies does.")

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS),
            "ratio": Part(SCALAR, note="a_i / p_i, the server's weight; nothing in a deployment"),
            "share": Part(SCALAR, note="a_i, likewise"),
        },
        up={**UP, "moved": Part(PARAMS, note="u_i - h_i, which a deployment's server works out")},
        keep=KEEP,
        server={"model": Part(PARAMS), "h": Part(PARAMS, note="sum of a_i h_i over all clients"), **intervals.PARTS},
    )

    def check(self, config: Config) -> list[str]:
        return super().check(config) + (participation.unknown(config) if self.settings.chances == "known" else [])

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), "h": tree.zeros(task.params_like), **intervals.start(task.population)}

    def sent(self, fresh: Tree, old: Tree) -> Tree:
        return {"delta": fresh, "old": old, "moved": tree.sub(fresh, old)}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        record: Tree = {n: state[n] for n in intervals.PARTS}
        share = self._shares(fed)
        inverse = 1 / fed.chances() if s.chances == "known" else intervals.weights(record)
        to = fed.sample()
        got = fed.ask(
            self.train, to, shared={"model": state["model"]},
            mine={c: {"ratio": share[c] * inverse[c], "share": share[c]} for c in to},
            fold=(total("delta", weight="ratio"), total("old", weight="ratio"), total("moved", weight="share")),
        )  # fmt: skip
        record = intervals.after(record, got.ids, s.cutoff)
        if not got.ids and s.empty == "skip":
            return {**state, **record}
        stale = tree.sub(state["h"], got.folded["old"])
        step = tree.add(got.folded["delta"], stale, s.beta)
        return {
            "model": tree.add(state["model"], step, s.server_lr),
            "h": tree.add(state["h"], got.folded["moved"]),
            **record,
        }

    def _shares(self, fed: Fed) -> Tensor:
        """Return a_i, (N,) float64."""
        if self.settings.weight == "one":
            return torch.full((fed.population,), 1 / fed.population, dtype=torch.float64)
        sizes = torch.as_tensor(fed.federation.train.sizes()[: fed.population], dtype=torch.float64)
        return sizes / sizes.sum()
