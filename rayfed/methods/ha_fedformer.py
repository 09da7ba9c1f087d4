"""HA-Fedformer: clients of one modality each; encoders are averaged by how sure clients are of them, decoders across modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Need, Part, Phase, Visit, Wire, keys, sgd_visit, total, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.over_modalities import OverModalities, counted, nothing, without_others
from rayfed.training import work
from rayfed.visits import once, steps
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.task.modalities import Modalities
    from rayfed.visits import Batch

FUSION = "fusion.weight"


class HAFedformer(OverModalities):
    """Zhang et al. 2023, "Unimodal Training-Multimodal Prediction: Cross-modal Federated Learning with Hierarchical Aggregation"
    (2303.15486). The abstract names two merges; the published code (RoyZry98/UTMP) has faults under which the first does nothing, so the
    paper's wish is kept as our form [ours], and what the code does stands beside it as `merge: code`.

    The network (`task.model: crossformer`) has phi_m = encoders.m, psi_m = decoders.m, alike and begun alike [ours], and a head. A
    client has one modality (`federation.modalities.owners`); prediction fuses what decoders answer, sum_m softmax(-U_m) c_m, U_m the
    modality's mean validation loss, or evenly.
    Client: local SGD; then `samples` of `block` further steps each, a sample theta^(s) the mean of its block. Of each tensor of its encoder
    mu = mean_s theta^(s), v = rho mean(var_s) + (1 - rho) var_s, precision L = 1 / (v + eps); of psi and the head mu alone.
    Server, `merge: precision`:
        phi_m <- sum_k n_k L_k mu_k / sum_k n_k L_k over the clients of m, entry by entry;
        psi'_m <- their mean of mu; psi_m <- (1 - mix) psi'_m + mix sum_j r_mj psi'_j, r_mj = softmax_j(cos(psi'_m - psi_m, psi'_j -
            psi_j) / tau);
        head <- the mean over all clients.
    `merge: code` [code]: clients send their last weights; phi_m <- the plain mean over the clients of m, head too; psi by attention:
    for each modality w_s - step sum_j a_j (w_s - w_j) + noise e, a = softmax_j ||w_s - w_j||_2, e ~ Normal(0, 1), then the mean of these.
    Not copied: the code's references in the place of samples are what `merge: code` stands for; its swapped encoders, and convolutions
    that stay at their start, are left out.
    Down: the model (P floats). Up: L mu of the client's own encoder and mu of its decoder and head, L (`rho: 1`: a number for each
    tensor, else as many as weights), its loss, n_k. Kept at clients: nothing. At the server: the model.
    """

    class Settings(MethodSettings):
        merge: Literal["precision", "code"] = Field(
            "precision", description="The paper's precision-weighted merge, or what the published code does."
        )
        samples: int = Field(5, ge=1, description="Samples of a client's weights in a round.")
        block: int = Field(5, ge=1, description="Steps whose mean is a sample.")
        rho: float = Field(0.5, ge=0, le=1, description="Share of a tensor's mean variance; 1: one precision a tensor.")
        eps: float = Field(1e-6, gt=0, description="Added to variances; the larger, the nearer to plain means.")
        mix: float = Field(0.5, ge=0, le=1, description="Share of other modalities in a decoder; 0: they never mix.")
        tau: float = Field(0.1, gt=0, description="Temperature of the decoders' likeness.")
        fuse: Literal["uniform", "loss"] = Field(
            "uniform", description="Weights of modalities in prediction: even, or by their validation losses."
        )
        step: float = Field(1.2, ge=0, description="Step of the code's attention between decoders.")
        noise: float = Field(0.001, ge=0, description="Deviation of the noise that the code adds to them.")

        needs: ClassVar = {
            **{n: (Need("merge", ("precision",)),) for n in ("samples", "block", "rho", "eps", "mix", "tau")},
            **{n: (Need("merge", ("code",)),) for n in ("step", "noise")},
        }

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={
            "moved": Part(PARAMS, note="precision times (mu - received), 0 in what the client lacks"),
            "precision": Part(PARAMS, note="L, 0 in what the client lacks"),
            "loss": Part(tensor("M"), note="sum of its validation losses, under `fuse: loss`"),
            "rows": Part(tensor("M"), note="how many these are"),
        },
        server={"model": Part(PARAMS)},
    )
    no_rule = "its encoders are averaged entry by entry, with weights of their own"
    no_privacy = "sends how its weights vary"

    def check(self, config: Config) -> list[str]:
        if self.settings.fuse == "loss" and not config.federation.split.val:
            return [
                "method.fuse: loss found, and clients have no validation rows; allowed: uniform, or federation.split.val"
            ]
        return []

    def fits_model(self, task: Task) -> list[str]:
        if FUSION in task.params_like:
            return []
        return [
            f"method.name: ha_fedformer found, and task.model: {task.config.task.model.name} has no decoders; allowed: crossformer"
        ]

    def cost(self, part: str, sent: Tree) -> int:
        """Return bytes without what a client lacks; a precision is a number for each tensor of the encoder where all are alike."""
        if part == "moved":
            return without_others(sent)
        if part == "precision":
            mine = {n: x for n, x in sent.items() if n.startswith("encoders.")}
            one = self.settings.merge == "code" or self.settings.rho == 1
            return without_others({n: x.reshape(len(x), -1)[:, :1] if one else x for n, x in mine.items()})
        return tree.nbytes(sent)

    def init(self, task: Task, key: int) -> Tree:
        model, (first, *others) = task.init_params(key), task.modalities
        names = [n for n in model if n.startswith(f"decoders.{first.name}.")]
        alike = {n.replace(first.name, m.name, 1): model[n] for m in others for n in names}
        return {"model": {**model, **alike}}

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings
        sampled = s.merge == "precision"
        more = [(steps(s.samples * s.block), moves)] if sampled else []
        made = sgd_visit(
            task.loss,
            self.local,
            start=lambda client: {"model": client.shared["model"], "rows": nothing(task)},
            phases=[(work(self.local), moves), *more],
            before=[self.counting(task)],
        )
        phases = [*made.phases[:-1], self._sampling(made.phases[-1])] if sampled else list(made.phases)
        if s.fuse == "loss":
            phases.append(Phase(once("val"), _losing(task), _before_losing(task), counts=False))

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            first = client.shared["model"]
            if sampled:
                mu, var = carry["mean"], tree.scale(carry["spread"], 1.0 / s.samples)
            else:
                mu, var = carry["model"], tree.zeros(first)
            precision = precisions(task, var, carry["rows"], s.rho, s.eps)
            zeros = nothing(task)
            sums = {"loss": carry.get("lost", zeros), "rows": carry.get("tried", zeros)}
            return {
                "moved": tree.map(torch.mul, precision, tree.sub(mu, first)),
                "precision": precision,
                **sums,
            }, client.own

        return made._replace(phases=phases, end=end)

    def _sampling(self, phase: Phase) -> Phase:
        """Return a training phase that also keeps mean and squared deviations of the means of its blocks of steps."""
        inner, block = phase.enter, self.settings.block
        assert inner is not None

        def enter(client: ClientContext, carry: Tree) -> Tree:
            zeros = tree.zeros(carry["model"])
            at = torch.zeros_like(client.info.lr)
            return {**inner(client, carry), "sum": zeros, "mean": zeros, "spread": zeros, "at": at}

        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            out = phase.step(carry, batch, key)
            at, sum_ = carry["at"] + 1, tree.add(carry["sum"], out["model"])
            full = at.remainder(block) == 0
            number = (at / block).floor().clamp(min=1)
            mean, spread = welford(carry["mean"], carry["spread"], tree.scale(sum_, 1.0 / block), number)
            return {
                **out,
                "at": at,
                "sum": tree.map(lambda x: torch.where(full, 0.0, x), sum_),
                "mean": tree.where(full, mean, carry["mean"]),
                "spread": tree.where(full, spread, carry["spread"]),
            }

        return phase._replace(enter=enter, step=step)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        by = "examples" if self.settings.merge == "precision" else "one"
        folds = (total("moved", by), total("precision", by), total("loss"), total("rows"))
        got = fed.ask(self.train, fed.sample(), shared=state, fold=folds)
        if not got.ids:
            return state
        s, model, folded = self.settings, state["model"], got.folded
        moved = {
            n: torch.where(w > 0, folded["moved"][n] / w.clamp(min=1e-30), 0.0) for n, w in folded["precision"].items()
        }
        there = [
            m.name
            for m in task.modalities
            if any(bool((folded["precision"][n] > 0).any()) for n in _of("encoders", m.name, model))
        ]
        new = tree.add(model, moved)
        decoders = {m: {n.split(".", 2)[2]: new[n] for n in _of("decoders", m, model)} for m in there}
        if s.merge == "code":
            one = attentive(list(decoders.values()), s.step, s.noise, fed.key("noise between decoders"))
            mixed = dict.fromkeys([m.name for m in task.modalities], one)
        else:
            before = {m: {n.split(".", 2)[2]: model[n] for n in _of("decoders", m, model)} for m in there}
            mixed = mixtures(decoders, before, s.mix, s.tau)
        new |= {f"decoders.{m}.{n}": x for m, d in mixed.items() for n, x in d.items()}
        if s.fuse == "loss":
            known = folded["rows"] > 0
            loss = -folded["loss"] / folded["rows"].clamp(min=1)
            new[FUSION] = torch.where(known, loss.to(new[FUSION].dtype), new[FUSION])
        return {"model": new}


def _of(side: str, modality: str, model: Tree) -> list[str]:
    return [n for n in model if n.startswith(f"{side}.{modality}.")]


def moves(name: str) -> bool:
    """Return whether clients train an entry: all but the weights of modalities in prediction."""
    return name != FUSION


def welford(mean: Tree, spread: Tree, sample: Tree, number: Tensor) -> tuple[Tree, Tree]:
    """Return (mean, sum of squared deviations) with one more sample, the `number`-th."""
    gap = tree.sub(sample, mean)
    new = tree.map(lambda m, d: m + d / number, mean, gap)
    return new, tree.map(lambda q, d, x, m: q + d * (x - m), spread, gap, sample, new)


def precisions(task: Task, var: Tree, rows: Tensor, rho: float, eps: float) -> Tree:
    """Return the weights of a client's entries: 1 / (variance + eps) in its encoder, 1 in its decoder, the head and all else, 0 in what
    belongs to modalities of which it has none of its `rows` (M,)."""
    of: Modalities = task  # type: ignore[assignment]
    out = tree.map(torch.ones_like, var)
    for i, m in enumerate(task.modalities):
        for n in of.of_modality(m.name):
            weight = precision(var[n], rho, eps) if n.startswith("encoders.") else out[n]
            out[n] = torch.where(rows[i] > 0, weight, 0.0)
    return out


def precision(var: Tensor, rho: float, eps: float) -> Tensor:
    """Return 1 / (rho mean(var) + (1 - rho) var + eps) of a tensor's variances."""
    return 1 / (rho * var.mean() + (1 - rho) * var + eps)


def mixtures(new: Mapping[str, Tree], old: Mapping[str, Tree], mix: float, tau: float) -> dict[str, Tree]:
    """Return modality -> (1 - mix) psi'_m + mix sum_j r_mj psi'_j; new, old: psi' and psi of each."""
    moved = torch.stack([tree.flatten(tree.sub(new[m], old[m])) for m in new]).double()
    unit = moved / moved.norm(dim=1, keepdim=True).clamp(min=1e-30)
    r = torch.softmax(unit @ unit.T / tau, 1)
    weights = (1 - mix) * torch.eye(len(new), dtype=r.dtype) + mix * r
    made = tree.unstack(tree.combine(weights, tree.stack(list(new.values()))))
    return dict(zip(new, made, strict=True))


def attentive(decoders: list[Tree], step: float, noise: float, key: int) -> Tree:
    """Return the mean over decoders w_s of w_s - step sum_j a_j (w_s - w_j) + noise e, a = softmax_j ||w_s - w_j||_2, tensor by tensor; of
    matrices the largest singular value."""
    rng, out = keys.torch_generator(key), {}
    for n in decoders[0]:
        w = torch.stack([d[n] for d in decoders])
        gaps = w[:, None] - w[None]  # (S, S, ...)
        apart = torch.linalg.matrix_norm(gaps, ord=2) if w.dim() == 3 else gaps.flatten(2).norm(dim=2)
        a = torch.softmax(apart, 1).reshape(*apart.shape, *[1] * (w.dim() - 1))
        e = torch.randn(w.shape, generator=rng, dtype=w.dtype)
        out[n] = (w - step * (a * gaps).sum(1) + noise * e.to(w.device)).mean(0)
    return out


def _before_losing(task: Task) -> Callable[[ClientContext, Tree], Tree]:
    def enter(client: ClientContext, carry: Tree) -> Tree:
        kept = {n: carry[n] for n in ("model", "rows", "mean", "spread") if n in carry}
        return {**kept, "lost": nothing(task), "tried": nothing(task)}

    return enter


def _losing(task: Task) -> Callable[[Tree, Batch, Tensor], Tree]:
    of: Modalities = task  # type: ignore[assignment]

    def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
        model = carry.get("mean", carry["model"])
        loss = task.loss(model, batch) * batch["w"]
        return {
            **carry,
            "lost": carry["lost"] + loss @ of.there(batch["x"]),
            "tried": carry["tried"] + counted(task, batch),
        }

    return step
