"""Base classes of the methods about LoRA's factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed import ANY, PARAMS, Part, Wire, mean, visit
from rayfed.adapters import lora, ranks
from rayfed.methods._bases.one_model import OneModel
from rayfed.wire import params_of

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config
    from rayfed.fed import Replies


GAP = {"lora/gap": ("||D* - B A||_F / ||D*||_F over all layers, D* the mean of the clients' products", "0 = exact")}
FACTORS = params_of("lora_A", "lora_B")


def factors(params: Tree) -> Tree:
    """Return the adapter's A and B of a trained tree."""
    return lora.select(params, lambda n: lora.is_a(n) or lora.is_b(n))


class OverLoRA(OneModel):
    """Base of the methods that are about the factors A and B: they refuse configs without `adapter: {kind: lora}`.

    one_rank: why the method cannot have clients of different ranks; None if it can. reads_base: whether it reads or moves frozen weights,
    which then cannot be in four bits.
    """

    one_rank: ClassVar[str | None] = None
    reads_base: ClassVar[bool] = False

    def check(self, config: Config) -> list[str]:
        if config.adapter.kind != "lora":
            return [f"adapter.kind: {config.adapter.kind} found, method.name: {config.method.name} needs lora"]
        if self.one_rank and ranks.unequal(config):
            found = ", ".join(map(str, sorted(config.adapter.shares)))
            return [f"adapter.rank: {found} found, method.name: {config.method.name} allows one: {self.one_rank}"]
        if self.reads_base and config.task.model.options.get("base") == "nf4":
            return [
                f"task.model.base: nf4 found, method.name: {config.method.name} works on frozen weights; allowed: float"
            ]
        return []


class MovesBase(OverLoRA):
    """Base of the methods that put into the frozen weights W what the factors' means miss: `weight` is one of their settings."""

    reads_base = True
    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS),
            "base": Part(ANY, note="W of each adapted layer, in the training type; nothing before it has moved"),
        },
        up={"delta": Part(PARAMS, update=True)},
        server={"model": Part(ANY, note="params, and W of each adapted layer")},
    )

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {**client.shared["base"], **client.shared["model"]}

        return lora.train_selected(task, self.local, lambda n: n in task.params_like, start)

    def ask(self, state: Tree, fed: Fed, task: Task) -> tuple[Tree, Tree, Replies]:
        """Train the round's clients; return (trained parameters, frozen weights that moved, replies with `delta` kept)."""
        model, base = lora.split_trained(task, state["model"])
        shared = {"model": model, "base": base}
        fold = mean("delta", weight=self.settings.weight)
        return model, base, fed.ask(self.train, fed.sample(), shared=shared, fold=fold, keep="delta")
