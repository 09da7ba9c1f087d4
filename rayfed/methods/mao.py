"""MAO: prompts for base classes learn from batches with similar classes in them, prompts for new classes from labels that they make up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import ANY, PARAMS, SCALAR, MethodSettings, Part, Visit, Wire, mean, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.over_prompts import OverPrompts, contrast, enlarged, hard_negatives, pool_phase
from rayfed.training import gradient, work

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Fed, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.visits import Batch


class MAO(OverPrompts):
    """Li et al. 2025, "MAO: Efficient Model-Agnostic Optimization of Prompt Tuning for Vision-Language Models" (ICME 2025, 2503.18160), and
    the authors' code, on PromptSRC's regularisers (Khattak et al. 2023, 2307.06948).

    theta: learned tokens of a two-tower model; v(x), t_c its features, v0, t0 the frozen ones, s the scale. Client, step A, base classes:
    a batch of B rows gets negatives: of each row the K classes whose names are most similar, but for the rows' own and those taken already;
    where fewer than two are left, others at random up to two; of each a random training picture. Each picture is compared with
    the batch's texts alone, L = CE(s V T_batch^T, diagonal) (`candidates: all`: with all base classes). With `k: 1` there are no negatives.
    Regularisers: text_reg mean |t - t0| + image_reg mean |v - v0| + logit_reg mean_c KL(softmax(s v0 t0^T) || softmax(s v t^T)), as the
    code has it: the sum over rows and classes through their number.
    Step B, new classes, from theta of step A: y = argmax over new classes under that theta, held, for the unlabelled pictures of
    `federation.public`; CE over all new classes, the same regularisers. No label is read, and no confidence is asked for.
    Server: theta <- mean of the clients'. What counts is a running mean over the rounds of a step, of weights N(t; share T, std^2) that
    sum to one. Served: step A's theta for base classes, step B's for new ones.
    With one client and one epoch a round it is the paper's algorithm; with several, that prompts are averaged is ours. Similarity of
    names is the cosine of the frozen text tower's features, where the paper asks a sentence model [inferred]. Negatives are drawn from
    `pool` pictures of each class, drawn anew in every visit; the code's random classes never are class 0, ours may be.
    Down: theta, and in step B step A's. Up: its change. Kept at clients: nothing. At the server: theta, both means, the weights' sum.
    """

    class Settings(MethodSettings):
        base_rounds: int = Field(10, ge=1, description="Rounds T of step A.")
        new_rounds: int = Field(5, ge=0, description="Rounds T of step B, which come behind them.")
        k: int = Field(8, ge=1, description="Most similar classes of a row that may become negatives, K; 1: none do.")
        pool: int = Field(4, ge=1, description="Pictures of each class that a visit draws negatives from.")
        negatives: Literal["similar", "random"] = Field(
            "similar", description="By what a row's K classes are chosen: their names, or at random (a control)."
        )
        candidates: Literal["batch", "all"] = Field(
            "batch", description="Texts that pictures are compared with: the batch's own, or all base classes'."
        )
        text_reg: float = Field(25.0, ge=0, description="Weight of the distance from the frozen text features.")
        image_reg: float = Field(10.0, ge=0, description="Weight of the distance from the frozen image features.")
        logit_reg: float = Field(1.0, ge=0, description="Weight of the divergence from the zero-shot answers.")
        peak: float = Field(
            0.75, ge=0, description="Where the averaging's weights peak, as a share of a step's rounds."
        )
        std: float = Field(1.0, gt=0, description="Their standard deviation, in rounds.")

    wire: ClassVar[Wire] = Wire(
        down={
            "theta": Part(PARAMS),
            "teacher": Part(PARAMS, note="theta of step A, in step B"),
        },
        up={"delta": Part(PARAMS, update=True)},
        server={
            "model": Part(ANY, note="both means, base and new"),
            "theta": Part(PARAMS),
            "weight": Part(SCALAR, note="of the averaging so far"),
        },
    )
    no_privacy = "a row's loss is against the other rows of its batch"

    def check(self, config: Config) -> list[str]:
        out, public = super().check(config), config.federation.public
        if config.local.label_smoothing and self.settings.candidates == "batch":
            out.append(
                f"local.label_smoothing: {config.local.label_smoothing:g} found, method.candidates: batch compares with the texts of a "
                "batch; allowed: 0, or method.candidates: all"
            )
        if not out and self.settings.new_rounds and (public.classes != "new" or public.labels or not public.rows):
            found = f"rows: {public.rows}, classes: {public.classes}, labels: {str(public.labels).lower()}"
            out.append(
                f"federation.public: {found} found, method.new_rounds: {self.settings.new_rounds} learns from unlabelled pictures of "
                "new classes; allowed: {rows: N, classes: new}, or method.new_rounds: 0"
            )
        return out

    def fits(self, federation: Federation) -> list[str]:
        if federation.new_classes or not self.settings.new_rounds:
            return []
        return [
            "federation.new_classes: 0 found, method mao tunes prompts for them; allowed: at least one, or method.new_rounds: 0"
        ]

    def init(self, task: Any, key: int) -> Tree:
        first = task.init_params(key)
        return {"model": {"base": first, "new": first}, "theta": first, "weight": torch.zeros((), dtype=task.dtype)}

    @visit
    def base(self, task: Any) -> Visit:
        """Run step A."""
        s = self.settings
        k = min(s.k, len(task.base))
        most = self.local.batch_size * max(k, 2)
        similar = similar_classes(task.anchors, task.base, k)

        def rows(theta: Tree, big: Batch, key: Any) -> Tensor:
            with task.training(big, key):
                v, t = task.image_features(theta, big["x"]), task.class_features(theta, task.base)
            at = task.place[big["y"].long()]
            if s.candidates == "all":
                entropy = task.cross_entropy(task.scale * (v @ t.T), at, key)
            else:
                entropy = contrast(v, t[at], task.scale, big["w"], symmetric=False)
            return self._regularised(task, entropy, v, t, task.base, big, key)

        def slope(params: Tree, carry: Tree, batch: Batch, key: Tensor) -> tuple[Tree, Tree]:
            if s.k == 1:
                return gradient(rows, params, batch, key), {}
            there = carry["there"]
            ranked = similar[batch["y"].long()]
            ranked = ranked if s.negatives == "similar" else ranked[:, :0]
            chosen = hard_negatives(ranked, batch["y"], batch["w"], there, key)
            return gradient(rows, params, enlarged(batch, carry, chosen, most, key), key), {}

        before = [pool_phase(task, s.pool)] if s.k > 1 else []
        return sgd_visit(task.loss, self.local, start=_start, grad=slope, end=_end, before=before)

    @visit
    def new(self, task: Any) -> Visit:
        """Run step B."""

        def objective(theta: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            made_up = task.logits_of(carry["teacher"], batch["x"], task.new).argmax(-1)
            with task.training(batch, key):
                v, t = task.image_features(theta, batch["x"]), task.class_features(theta, task.new)
            entropy = task.cross_entropy(task.scale * (v @ t.T), made_up, key)
            return self._regularised(task, entropy, v, t, task.new, batch, key)

        def start(client: Any) -> Tree:
            return {**_start(client), "teacher": client.shared["teacher"]}

        phases = [(work(self.local, "public"), None)]
        return sgd_visit(task.loss, self.local, start=start, objective=objective, end=_end, phases=phases)

    def _regularised(
        self, task: Any, loss: Tensor, v: Tensor, t: Tensor, classes: Tensor, batch: Batch, key: Any
    ) -> Tensor:
        """Return the loss of each row (B,) with its distances from the frozen towers; v, t: features of the rows and of these classes."""
        s, t0 = self.settings, task.anchors[classes]
        if s.text_reg:
            loss = loss + s.text_reg * (t - t0).abs().mean()
        if not (s.image_reg or s.logit_reg):
            return loss
        with task.training(batch, key):  # the same views of the pictures
            v0 = task.image_features(task.plain, batch["x"])
        if s.image_reg:
            loss = loss + s.image_reg * (v - v0).abs().mean(-1)
        if s.logit_reg:
            now, first = (torch.log_softmax(task.scale * (a @ b.T), -1) for a, b in ((v, t), (v0, t0)))
            loss = loss + s.logit_reg * (first.exp() * (first - now)).mean(-1)
        return loss

    def round(self, state: Tree, fed: Fed, task: Any) -> Tree:
        s, r = self.settings, fed.round
        if r > s.base_rounds + s.new_rounds:
            return state
        theta, weight, means = state["theta"], state["weight"], state["model"]
        in_a = r <= s.base_rounds
        if r == s.base_rounds + 1:
            theta, weight = means["base"], torch.zeros_like(weight)
        shared = {"theta": theta} if in_a else {"theta": theta, "teacher": means["base"]}
        got = fed.ask(self.base if in_a else self.new, fed.sample(), shared=shared, fold=mean("delta"))
        theta = tree.add(theta, got.folded["delta"])
        t, whole = (r, s.base_rounds) if in_a else (r - s.base_rounds, s.new_rounds)
        more = density(t, whole, s.peak, s.std)
        before = means["base"] if in_a else means["new"]
        total = weight + more  # 0 far from the peak, where numbers end: there the last round outweighs all before it
        share = torch.where(total > 0, more / total, 1.0)
        averaged = tree.map(lambda a, b: (1 - share) * a + share * b, before, theta)
        means = {"base": averaged, "new": averaged} if in_a else {"base": means["base"], "new": averaged}
        return {"model": means, "theta": theta, "weight": weight + more}


def _start(client: Any) -> Tree:
    return {"model": client.shared["theta"]}


def _end(client: Any, carry: Tree) -> tuple[Tree, Tree]:
    return {"delta": tree.sub(carry["model"], client.shared["theta"])}, client.own


def density(t: int, rounds: int, peak: float, std: float) -> float:
    """Return exp(-(t - peak T)^2 / (2 std^2)) over its largest value in rounds 1 to T: what a round weighs in the averaging, before all of
    them are divided by their sum."""
    gaps = [(r - peak * rounds) ** 2 / (2 * std**2) for r in range(1, rounds + 1)]
    return math.exp(min(gaps) - gaps[t - 1])


def similar_classes(features: Tensor, among: Tensor, k: int) -> Tensor:
    """Return of each class the k most similar ones `among` some by their names' features (C, d) of length 1, itself first where it is
    one of them, (C, k) class numbers."""
    return among[(features @ features[among].T).topk(k, -1).indices]
