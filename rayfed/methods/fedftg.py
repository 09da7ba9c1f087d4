"""FedFTG: the average is fine-tuned at the server by the clients' models, on inputs of a generator."""

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


class FedFTG(Method):
    """Zhang et al. 2022, "Fine-tuning Global Model via Data-Free Knowledge Distillation for Non-IID Federated Learning"
    (CVPR 2022, 2203.09249).

    Client i: w_i <- w, E epochs of SGD; sends w_i - w and its class counts n_i^y.
    Server: w <- sum_i (n_i / n) w_i, then `iterations` times, with y ~ (sum_i n_i^y)^rho, x = G(z, y) and
    alpha_i^y = n_i^y / sum_j n_j^y over the round's clients:
        G: min  sum_i alpha_i^y CE(f(x; w_i), y) - sum_i alpha_i^y |f(x; w) - f(x; w_i)|_1 + L_div   (Adam)
        w: min  KL(sum_i alpha_i^y softmax f(x; w_i) || softmax f(x; w)) / C                          (SGD)
    C classes: the code takes the mean of its cross-entropy over examples and classes, which has this gradient, so that rate 0.1
    is one of 0.1 / C on a cross-entropy as it is usually written. `cross_entropy` adds one against the drawn label [ours],
    `adversary: kl` takes the KL for the generator as well [paper].
    Differences to the code, all [ours]: it takes one generator step per teacher, here one step goes down the sum of their
    losses, and `generator_steps` asks for more; it draws y and z once per iteration, labels by quota, here every step draws
    anew; its fidelity is the batch's mean cross-entropy times the teacher's mean weight, here example by example; its
    generator is a convolutional one with Adam at 0.01 decayed like the student's rate, here an MLP at a constant rate; its
    student has weight decay (0.001).
    The generator is kept between rounds. The paper generates images; `inputs: embeddings`, for texts, and `inputs: probe`
    are ours.
    `iterations: 0` is FedAvg to the bit.
    Down: w (P). Up: update (P), n_i^y (C ints). Kept at clients: nothing. At the server: w, generator and its Adam state;
    within a round the models of all its clients.
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
