"""AFA-CS: anarchic federated averaging across silos; the last gradient of every worker counts in every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, Part, Wire, tensor, tree
from rayfed.lazy import torch
from rayfed.methods._bases.anarchic import DOWN, SERVER, Anarchic, AnarchicSettings
from rayfed.methods._bases.asynchronous import Asynchronous
from rayfed.methods._bases.remembering import KEEP, UP, memory_problems

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree
    from rayfed.config.schema import Config


class AFACS(Anarchic):
    """Yang et al. 2022, "Anarchic Federated Learning" (ICML 2022, 2108.09875), cross-silo.

    Worker i: as in `afa_cd`. Server: G_i of the `buffer` workers that came take the places of those it had of them;
    x <- x - server_lr mean over all workers of the newest G_i, fresh or old. Of workers that never came there is none: the mean is
    over those that did (`missing: present`), or counts them as zero (`zero`) [inferred].
    Down: the model (P floats). Up: G_i (P), and K_i. Kept at clients: nothing. At the server: x, each version in use, and G_i of every
    worker ((N + 1) P), here with the workers' states.
    """

    class Settings(AnarchicSettings):
        missing: Literal["present", "zero"] = Field("present", description="What workers count for that never came.")

    wire: ClassVar[Wire] = Asynchronous.wire._replace(
        down={**Asynchronous.wire.down, **DOWN},
        up=UP,
        keep=KEEP,
        server={
            **Asynchronous.wire.server,
            **SERVER,
            "sum": Part(PARAMS, note="minus the sum of the newest G_i"),
            "came": Part(tensor("N", dtype="bool"), note="who has ever come"),
        },
    )

    def check(self, config: Config) -> list[str]:
        return super().check(config) + memory_problems(config)

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part == "old" else super().cost(part, sent)

    def init(self, task: Task, key: int) -> Tree:
        came = torch.zeros(task.population, dtype=torch.bool)
        return {**super().init(task, key), "sum": tree.zeros(task.params_like), "came": came}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"h_i": tree.zeros(task.params_like)}

    def sent(self, direction: Tree, own: Tree) -> tuple[Tree, Tree]:
        return {"delta": direction, "old": own["h_i"]}, {"h_i": direction}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        at, arrived, told, taken = self.arrivals(state, fed)
        summed, ids = self.collect(fed, at, arrived, lambda client, staleness: 1.0, ("delta", "old"), told)
        if not ids:
            return {**state, **at.after(None), "steps": taken}
        newest = tree.add(state["sum"], tree.sub(summed["delta"], summed["old"]))
        came = state["came"].clone()
        came[ids] = True
        of = int(came.sum()) if self.settings.missing == "present" else fed.population
        model = tree.add(state["model"], newest, self.settings.server_lr / of)
        return {**at.after(model), "steps": taken, "sum": newest, "came": came}
