"""FedOA: a global model by FedAvg, and a personal one at each client whose features stay close to the global one's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, Method, MethodSettings, Part, Visit, Wire, mean, sgd_visit, tree, visit
from rayfed.lazy import F, torch
from rayfed.task import needs_classes
from rayfed.visits import Phase, accumulate, average, epochs, model_of, once

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.partition import Federation

Gap = Callable[["Tensor", "Tensor", Any], "Tensor"]  # (h, reference (B, d), batch) -> (B,)


class FedOA(Method):
    """Yang et al. 2025, "Federated Adapter on Foundation Models: An Out-Of-Distribution Approach" (2505.01075); defaults as in the
    authors' code.

    Global: phi <- phi + sum_i p_i (phi_i - phi), phi_i by local training from phi, p_i equal [code] (`weight: examples`: n_i / n):
    FedAvg, with LoRA FedIT, to the bit.
    Personal, at client i from the second round on [code], phi fixed: on each batch of rows x_1 .. x_B
        min  L_i(theta) + lam ||H(theta) - H(phi)||_F,   H (B, d) the features of the batch's real rows,
    the norm over the whole batch at once, not squared and not divided by d or B, lam 0.5 [code]: it grows with sqrt(B d), its
    gradient in H has norm lam however near the two are, and is 0 at distance 0. Features: of texts under a pretrained model the
    last layer's state at the last token [code], otherwise the input of the last linear layer; whatever adapter made them.
    That lam is one for adapters under AdamW at 3e-4: whole networks under SGD at 0.1 or 0.3 needed a tenth of it (claim fedoa).
    theta_i starts as a fresh adapter, the run's first (`start: initial`) [code], or as the first phi it sees (`received`)
    [ours], and is kept between rounds; the code starts anew where a client was not picked in the round before. It is pulled to
    phi as received [code], or with `personal_first: false` to phi_i as the client has just trained it. Dropout is off where
    features are taken, in both passes [ours].
    Other gaps are ours, with lam / 2: |h - h'|^2 / d (`squared`), 1 - cos(h, h') (`cosine`), |m_c - m'_c|^2 / d between the
    batch's class means, weighted by class size (`class_means`). `gap: weights` is |theta - phi|^2 in place of features: the
    personal half of Ditto and pFedMe, to compare with. A lam found for one of them does not carry over to another.
    Down: phi (P, trained parameters only). Up: update (P), n_i. Kept at client i: theta_i (P), and whether it has one.
    At the server: phi. A client that has no theta_i is served phi.
    """

    logs: ClassVar = {
        "accuracy/pooled": ("personal models on the first 512 pooled test rows, mean over clients", "fraction")
    }

    no_privacy = "has a distance of features of a whole batch in its loss"

    class Settings(MethodSettings):
        lam: float | None = Field(
            None,
            ge=0,
            description="Weight of the distance to the global model's features; null: 0.5 with norm, else 0.1.",
        )
        gap: Literal["norm", "squared", "cosine", "class_means", "weights"] = Field(
            "norm",
            description="Distance of features: norm of the batch's (code), squared per entry, cosine, of class means; or of "
            "parameters.",
        )
        pool: Literal["last", "head"] | None = Field(
            None,
            description="Features: of a text's last token in the last layer, or the classifier's input; null: last where the "
            "data are texts and the model is pretrained.",
        )
        personal_from: int = Field(2, ge=1, description="First round in which clients train a personal model.")
        personal_epochs: int | None = Field(
            None, ge=1, description="Passes of personal training in a round; null: the local work of the config."
        )
        personal_first: bool = Field(
            True, description="Pull the personal model to the global one as received, or as trained here just before."
        )
        start: Literal["received", "initial"] = Field(
            "initial", description="First personal model: the first global model received, or the run's initial one."
        )
        weight: Literal["examples", "one"] = Field(
            "one", description="Weights of the global mean: by examples, or equal (code)."
        )
        pooled: bool = Field(
            False, description="Log what personal models get right of the pooled test set (its first 512 rows)."
        )

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS, note="phi")},
        up={
            "delta": Part(PARAMS, update=True),
            "right": Part(SCALAR, note="with `pooled`: for the report only, in no bytes"),
        },
        keep={
            "personal": Part(PARAMS, private=True, note="theta_i"),
            "visited": Part(SCALAR, private=True, note="1 once it has one"),
        },
        server={"model": Part(PARAMS)},
    )

    @property
    def lam(self) -> float:
        s = self.settings
        return (0.5 if s.gap == "norm" else 0.1) if s.lam is None else s.lam

    def _reads_tokens(self, kind: str) -> bool:
        """Return whether features are the last token's, given the data's kind."""
        there = kind in ("text", "instruct") and self.config.task.model.name.startswith("hf:")
        return there and self.settings.pool != "head"

    def splits_model(self) -> bool:
        s, pretrained = self.settings, self.config.task.model.name.startswith("hf:")
        return bool(self.lam) and s.gap != "weights" and (not pretrained or s.pool == "head")

    def fits(self, federation: Federation) -> list[str]:
        s, tokens = self.settings, self._reads_tokens(federation.kind)
        if s.pool == "last" and not tokens:
            return [
                "method.pool: last found, it reads tokens of texts under a pretrained model (hf:); allowed here: head"
            ]
        if tokens and s.gap != "class_means":
            return []
        return needs_classes(federation, "fedoa compares penultimate features, or means of classes")

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"personal": task.initial, "visited": torch.zeros((), dtype=task.dtype)}

    @visit
    def train(self, task: Task, personal: bool = True) -> Visit:
        """Train phi_i, then theta_i; or phi_i alone."""
        whole = sgd_visit(task.loss, self.local)
        return self._with_personal(task, whole) if personal else whole

    def _with_personal(self, task: Task, whole: Visit) -> Visit:
        s = self.settings
        phases = None if s.personal_epochs is None else [(epochs(s.personal_epochs), lambda n: n in task.params_like)]
        personal = sgd_visit(
            task.loss, self.local, train="personal", objective=self._objective(task), hook=self._pull(), phases=phases
        )
        second = personal.phases[0]
        begin_second = second.enter
        assert begin_second is not None

        def begin(client: ClientContext) -> Tree:
            first = client.own["personal"]
            if s.start == "received":
                first = tree.where(client.own["visited"] > 0, first, client.shared["model"])
            return {"model": client.shared["model"], "personal": first, "reference": client.shared["model"]}

        def enter(client: ClientContext, carry: Tree) -> Tree:
            reference = client.shared["model"] if s.personal_first else carry["model"]
            return begin_second(client, {**carry, "reference": reference})

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            after = {"personal": carry["personal"], "visited": torch.ones_like(client.own["visited"])}
            return {"delta": tree.sub(carry["model"], client.shared["model"])}, after

        # The global half comes first, whatever its place in the paper: its batches are then FedAvg's. Neither half sees the
        # other but for the reference, which `enter` names.
        return Visit(begin, [*whole.phases, second._replace(enter=enter)], end, True, personal.local)

    def _objective(self, task: Task) -> Any:
        lam, kind = self.lam, self.settings.gap
        if not lam or kind == "weights":
            return None
        gap, weight = GAPS[kind], lam if kind == "norm" else lam / 2
        features = task.last_token if self._reads_tokens(task.kind) else task.features

        def objective(params: Tree, carry: Tree, batch: Any, key: Tensor) -> Tensor:
            # Features are taken by themselves, in evaluation mode: the loss's pass may drop inputs of adapters.
            h, reference = (features(p, batch["x"]) for p in (params, carry["reference"]))
            return task.loss(params, batch, key) + weight * gap(h, reference, {**batch, "classes": task.classes})

        return objective

    def _pull(self) -> Any:
        lam = self.lam
        if self.settings.gap != "weights" or not lam:
            return None
        return lambda gradient, carry: tree.add(gradient, tree.sub(carry["personal"], carry["reference"]), lam)

    @visit
    def score_pooled(self, task: Task) -> Visit:
        """Measure theta_i where the client may have no data of its own: on the first chunk of the pooled test set."""

        def begin(client: ClientContext) -> Tree:
            zero = torch.zeros((), dtype=task.dtype, device=task.device)
            return {"model": client.own["personal"], "sum": {"right": zero}, "n": zero}

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            right = task.metrics(carry["model"], batch)["accuracy"]
            return {**carry, **accumulate(carry, {"right": right}, batch["w"])}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return average(carry), client.own

        return Visit(begin, [Phase(once("pooled 0"), step, counts=False)], end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        fold = mean("delta", weight=self.settings.weight)
        personal = fed.round >= self.settings.personal_from
        train = self.train.with_(personal=personal)
        got = fed.ask(train, fed.sample(), shared={"model": state["model"]}, fold=fold)
        if self.settings.pooled and personal and got.ids and len(fed.federation.pooled_test) and self._scored(fed):
            found = fed.ask(self.score_pooled, got.ids, metered=False)
            for accuracy in found.gather("right").values():
                fed.log("accuracy/pooled", float(accuracy))
        return {"model": tree.add(state["model"], got.folded["delta"])}

    def _scored(self, fed: Fed) -> bool:
        return fed.round % self.config.evaluate.every == 0 or fed.round == self.config.rounds

    def view(self, task: Task) -> Visit:
        return model_of(lambda c: tree.where(c.own["visited"] > 0, c.own["personal"], c.shared["model"]))


def norm(h: Tensor, reference: Tensor, batch: Any) -> Tensor:
    """Return ||H - H'||_F over the real examples (batch["w"]) of features H (B, d), the same for each row, (B,); its gradient at
    distance 0 is 0."""
    apart = (h - reference.detach()) * batch["w"].to(h.dtype)[:, None]
    square = apart.square().sum()
    away = square > 0
    return (torch.where(away, square, 1.0).sqrt() * away).expand(len(h))


def squared(h: Tensor, reference: Tensor, batch: Any) -> Tensor:
    """Return |h - h'|^2 / d of features (B, d), (B,)."""
    return (h - reference.detach()).square().mean(-1)


def cosine(h: Tensor, reference: Tensor, batch: Any) -> Tensor:
    """Return 1 - cos(h, h') of features (B, d), (B,)."""
    return 1 - F.cosine_similarity(h, reference.detach(), dim=-1)


def class_means(h: Tensor, reference: Tensor, batch: Any) -> Tensor:
    """Return for each real example (batch["w"]) |m_c - m'_c|^2 / d, c its label and m_c the mean feature of c in the batch; (B,)."""
    classes = torch.arange(batch["classes"], device=h.device)
    member = (batch["y"][:, None] == classes).to(h.dtype) * batch["w"].to(h.dtype)[:, None]
    apart = (member.T @ (h - reference.detach())) / member.sum(0).clamp(min=1)[:, None]
    return apart.square().mean(-1)[batch["y"].long()]


GAPS: dict[str, Gap] = {"norm": norm, "squared": squared, "cosine": cosine, "class_means": class_means}
