"""FedGen: clients are taught by a generator of features that agrees with all clients' classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Wire, keys, mean, optimizers, sgd_visit, tree, visit
from rayfed.distill import ensemble
from rayfed.distill import generator as gen
from rayfed.lazy import F, torch
from rayfed.task import needs_classes
from rayfed.wire import ANY, CLASSES, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.partition import Federation


class FedGen(Method):
    """Zhu et al. 2021, "Data-Free Knowledge Distillation for Heterogeneous Federated Learning" (ICML 2021, 2105.10056).

    G(y, e) maps a label and uniform noise e to a vector of the size of the model's penultimate features; h_i is the
    model's last linear layer, a_t = alpha decay^(t-1), b_t = beta decay^(t-1) in round t.
    Client i, on a batch (x, y) with drawn labels y':
        min  CE(f(x; w_i), y) + (generated / batch_size) a_t CE(h_i(G(y', e')), y') + b_t KL(h_i(G(y, e)) || f(x; w_i)),
    the KL's target without gradient; sends w_i - w and its class counts n_i^y.
    Server: w <- sum_i (n_i / n) w_i; then `generator_steps` Adam steps on
        min_G  sum_i alpha_i^y CE(h_i(G(y, e)), y) + diversity L_div,   alpha_i^y = n_i^y / sum_j n_j^y.
    Labels are drawn uniformly over the classes reported so far (the code; `rho: 1`: the pooled distribution [paper]).
    Until a generator was trained (round 1) clients train plainly; `alpha: 0, beta: 0` is FedAvg to the bit.
    Differences to the published code, all [ours]: its generator has batch normalisation (whose running statistics would not be
    one client's), weight decay 0.01 and a rate that falls by 0.98 per round, and learns on batches of the local size; its
    n_i^y count the examples of the batches that a client drew in the round, plus one of each class, where here they are the
    client's examples; it draws y for G among the classes of which some client of the round has two, and y' at clients among
    all classes of the data. alpha and beta are 1, the paper's weight of the generated term (its code's 10 kept digits from
    being learned at a local rate of 0.1).
    Down: w (P), G, label distribution (C). Up: update (P), n_i^y (C ints); of the update the server reads h_i alone before
    averaging. Kept at clients: nothing. At the server: w, G and its Adam state, class counts.
    """

    logs: ClassVar = {
        "generator/fidelity": ("cross-entropy of the clients' classifiers on generated features, last step", "nats"),
        "generator/diversity": (
            "exp(-mean over pairs of distance of noise times distance of features)",
            "1 = all equal",
        ),
    }

    class Settings(MethodSettings):
        alpha: float = Field(1.0, ge=0, description="Weight of cross-entropy on generated features; the code's is 10.")
        beta: float = Field(1.0, ge=0, description="Weight of KL from generated to real predictions; the code's is 10.")
        decay: float = Field(0.98, gt=0, le=1, description="Factor of both weights per round.")
        generated: int | None = Field(None, ge=1, description="Generated features per local step; null: a batch's.")
        noise: int = Field(32, ge=1, description="Noise size.")
        hidden: int = Field(256, ge=1, description="Width of the generator's hidden layer.")
        generator_steps: int = Field(50, ge=0, description="Generator steps per round.")
        generator_lr: float = Field(3e-4, gt=0, description="Adam's rate for the generator.")
        batch: int = Field(128, ge=1, description="Generated features per generator step.")
        diversity: float = Field(1.0, ge=0, description="Weight of the diversity term.")
        rho: float = Field(0.0, ge=0, description="Exponent of pooled class counts in label draws; 0 is uniform.")

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS),
            "generator": Part(ANY, note="G"),
            "labels": Part(CLASSES, note="probabilities of drawn labels, zeros while G is untrained"),
        },
        up={"delta": Part(PARAMS, update=True), "counts": Part(tensor("C", dtype="int64"), note="n_i^y")},
        server={
            "model": Part(PARAMS),
            "generator": Part(ANY, note="G and its Adam state"),
            "counts": Part(tensor("C", dtype="int64"), note="class counts, summed over all rounds"),
        },
    )

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "fedgen's generator makes features of classes")

    def splits_model(self) -> bool:
        return True

    def init(self, task: Task, key: int) -> Tree:
        s = self.settings
        first = keys.key(key, 0, -1, "generator")
        g = gen.init(first, s.noise, task.classes, (task.feature_size,), (s.hidden,), task.dtype)
        return {
            "model": task.init_params(key),
            "generator": {"g": g, "adam": optimizers.adam().init(g)},
            "counts": torch.zeros(task.classes, dtype=torch.int64),
        }

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings
        ratio = (s.generated or self.local.batch_size) / self.local.batch_size

        def start(client: ClientContext) -> Tree:
            fade = s.decay ** (client.info.round - 1).to(task.dtype)
            return {
                **client.shared,
                "fade": torch.where(client.shared["labels"].sum() > 0, fade, torch.zeros_like(fade)),
            }

        def objective(params: Tree, carry: Tree, batch: Any, key: Any) -> Tensor:
            def noise(purpose: int, n: int) -> Tensor:
                return keys.uniform(keys.fold(key, purpose), (n, s.noise), task.dtype)

            h, g = task.classifier(params), carry["generator"]
            with task.training(batch, key):
                logits = task.classify(h, task.features(params, batch["x"]))
            loss = task.cross_entropy(logits, batch["y"], key)
            if s.beta:
                like = task.classify(h, gen.latent(g, noise(0, len(loss)), batch["y"], task.classes))
                loss = loss + s.beta * carry["fade"] * ensemble.kl(like.detach(), logits, 1.0)
            if s.alpha:
                n = s.generated or self.local.batch_size
                y = draw_labels(carry["labels"], keys.uniform(keys.fold(key, 1), (n,), task.dtype))
                taught = F.cross_entropy(task.classify(h, gen.latent(g, noise(2, n), y, task.classes)), y)
                loss = loss + ratio * s.alpha * carry["fade"] * taught
            return loss

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"delta": tree.sub(carry["model"], client.shared["model"]), "counts": client.info.counts}, client.own

        if not (s.alpha or s.beta):
            return sgd_visit(task.loss, self.local, end=end)
        return sgd_visit(task.loss, self.local, start=start, end=end, objective=objective)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        labels = label_distribution(state["counts"], s.rho).to(task.dtype)
        shared = {"model": state["model"], "generator": state["generator"]["g"], "labels": labels}
        got = fed.ask(self.train, fed.sample(), shared=shared, fold=mean("delta"), keep="delta")
        generator, counts = state["generator"], state["counts"]
        if got.ids and s.generator_steps:
            heads = task.classifier(state["model"])
            heads = tree.add(heads, task.classifier(got.stacked("delta", task.classifier_names)))
            here = got.stacked("counts")
            generator, losses = train_generator(task, generator, heads, here, s, fed.key("generator"))
            counts = counts + here.sum(0)
            for name, value in losses.items():
                fed.log(f"generator/{name}", value)
        return {"model": tree.add(state["model"], got.folded["delta"]), "generator": generator, "counts": counts}


def label_distribution(counts: Tensor, rho: float) -> Tensor:
    """Return p (C,) ~ n_c^rho over the classes with n_c > 0, float64; zeros if there is none."""
    weight = torch.where(counts > 0, counts.clamp(min=1).double() ** rho, 0.0)
    return weight / weight.sum().clamp(min=1e-300)


def draw_labels(p: Tensor, u: Tensor) -> Tensor:
    """Return labels (n,) of the distribution p (C,) from uniform numbers u (n,); a class of probability 0 is never drawn."""
    edges = torch.cumsum(p, 0)
    edges = edges / edges[-1].clamp(min=1e-30)  # the last edge is 1 exactly, and u is below it
    return (u[:, None] >= edges).sum(1).clamp(max=len(p) - 1)


def train_generator(
    task: Task, state: Tree, heads: Tree, counts: Tensor, s: FedGen.Settings, key: int
) -> tuple[Tree, dict[str, float]]:
    """Train G for a round against the heads, leaves (K, ...); counts (K, C). Return (G and Adam state, last losses)."""
    rng, adam, alpha = keys.torch_generator(key), optimizers.adam(), ensemble.class_weights(counts)

    def loss(g: Tree, y: Tensor, e: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z = gen.latent(g, e, y, task.classes)
        logits = torch.vmap(task.classify, in_dims=(0, None))(heads, z)
        parts = {"fidelity": ensemble.judged(logits, alpha, y), "diversity": gen.diversity(e, z)}
        return parts["fidelity"] + s.diversity * parts["diversity"], parts

    parts: dict[str, Tensor] = {}
    for _ in range(s.generator_steps):
        y = ensemble.draw_labels(counts, s.batch, rng, s.rho)
        e = torch.rand(s.batch, s.noise, generator=rng, dtype=task.dtype)
        grads, parts = torch.func.grad(loss, has_aux=True)(state["g"], y, e)
        g, moments = adam.update(grads, state["adam"], state["g"], s.generator_lr)
        state = {"g": g, "adam": moments}
    return state, {n: float(v) for n, v in parts.items()}
