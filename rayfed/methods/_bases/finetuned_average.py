"""The average is fine-tuned at the server by the clients' models, without data."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import ANY, PARAMS, Method, MethodSettings, Part, Wire, keys, mean, sgd_visit, tree, visit
from rayfed.distill import datafree
from rayfed.wire import tensor

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config
    from rayfed.partition import Federation


class FineTunedAverage(Method):
    """Base: the clients' models teach their average on inputs of a generator, which is kept between rounds (`rayfed.distill.datafree`).

    Clients send their update and class counts. `iterations: 0` is FedAvg to the bit. The defaults are FedFTG's.
    """

    needs = frozenset({"classes"})
    logs = datafree.LOGS

    class Settings(datafree.DataFree, MethodSettings):
        iterations: int = Field(10, ge=0, description="Outer iterations per round; 0 is FedAvg.")
        inputs: Literal["generator", "embeddings", "probe"] = Field(
            "generator",
            description="What the student learns on: generated inputs; for texts generated word embeddings (ours); or "
            "`federation.probe` (ours; no generator).",
        )
        tau: float = Field(1.0, gt=0, description="Distillation temperature.")
        fidelity_of: Literal["ensemble", "each"] = Field(
            "each", description="Who must recognise the drawn label: the mixed ensemble, or each teacher by its weight."
        )
        adversary: Literal["kl", "l1", "selective"] = Field(
            "l1",
            description="Disagreement: weighted L1 of logits (code); KL (paper); KL only where ensemble right, student wrong.",
        )
        noise: int = Field(100, ge=1, description="Noise size, d_z.")
        student_lr: float = Field(
            0.1,
            gt=0,
            description="SGD's rate for the student (code), whose loss is the mean over examples and classes.",
        )
        student_decay: float = Field(0.998, gt=0, le=1, description="Factor of the student's rate per round.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS, update=True), "counts": Part(tensor("C", dtype="int64"), note="n_i^y")},
        server={"model": Part(PARAMS), "generator": Part(ANY, note="generator and its Adam state")},
    )

    def init(self, task: Task, key: int) -> Tree:
        generator = datafree.init(task, keys.key(key, 0, -1, "generator"), self.settings)
        return {"model": task.init_params(key), "generator": generator}

    @visit
    def train(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"delta": tree.sub(carry["model"], client.shared["model"]), "counts": client.info.counts}, client.own

        return sgd_visit(task.loss, self.local, end=end)

    def check(self, config: Config) -> list[str]:
        return datafree.check(self.settings, config)

    def fits(self, federation: Federation) -> list[str]:
        return datafree.fits(self.settings, federation)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"), keep="delta")
        average, generator = tree.add(state["model"], got.folded["delta"]), state["generator"]
        if not (got.ids and s.iterations):
            return {"model": average, "generator": generator}
        teachers = [tree.add(state["model"], d) for d in tree.unstack(got.stacked("delta"))]
        counts, probe = got.stacked("counts"), fed.probe() if s.inputs == "probe" else None
        model, generator, losses = datafree.distill(
            task, average, teachers, counts, generator, s, fed.key("distillation"), fed.round, probe
        )
        for name, value in losses.items():
            fed.log(f"distill/{name}", value)
        return {"model": model, "generator": generator}
