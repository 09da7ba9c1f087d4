"""FedKA: adversarial features, features matched with the global model's on a known target domain, and pseudo-labels by vote."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import (
    ANY,
    PARAMS,
    Method,
    MethodSettings,
    Part,
    Wire,
    keys,
    mean,
    model_of,
    optimizers,
    sgd_visit,
    total,
    tree,
    visit,
)
from rayfed.lazy import F, torch
from rayfed.training import grad, gradient, work
from rayfed.visits import Visit, steps

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config

KERNELS, FACTOR = 5, 2.0  # of the matching: Gaussians, and how much wider each is than the one before
DOMAIN = "domain head"  # the entry of what is trained that tells domains apart, (2, d + 1): weights, bias


class FedKA(Method):
    """Sun et al. 2022, Feature distribution matching for federated domain generalization (2203.11635), after the authors' notebook.

    The target domain's inputs are known, without labels: `federation.public: {rows, domain}`. It adapts to that domain; it
    does not generalise
    to one that nobody has seen. F: features before the last layer, H: that layer, D: a layer that tells two domains apart.
    alpha = 2 / (1 + exp(-`slope` p)) - 1, p the share of all steps that is done. A round, client k:
        adversarial: CE(H F x_s, y_s) + CE(D R(F x_s), 0) + CE(D R(F x_t), 1), R passes on and turns the gradient round, times alpha
        matching: then as many batches again, a step for every `accumulate` of them: alpha times their mean MMD^2(F_k x_s,
        F_g x_t), F_g the global
            model's features, fixed
        voting: the trained model's classes of all public rows
    Server: uniform means of models and domain heads; then `vote_steps` Adam steps of the mean on alpha CE(H F x_t, vote),
    vote the class that
    most clients say, of equal ones the first, its optimizer's state kept. `broadcast`: what clients begin from, voted or
    the mean itself (the
    notebook, whose voted model is for scores and F_g alone). MMD^2 is the biased estimate, its bandwidth the mean squared distance / 4.
    The notebook overwrites the sum over `accumulate` batches by its last one (here it is a sum), and votes in train mode
    (here in eval mode). Each of the two kinds of local steps begins with a fresh optimizer.
    Down: model, D, the target's inputs; where clients begin from the mean, F_g beside it. Up: update, D, votes (rows, C).
    Kept at clients: nothing. At the server: both models, D, Adam's state.
    """

    no_privacy = "trains with two batches at a time, one of them public"

    class Settings(MethodSettings):
        adversarial: bool = Field(True, description="Whether features shall not tell source from target.")
        matching: bool = Field(True, description="Whether features are matched with the global model's on the target.")
        voting: bool = Field(True, description="Whether the server learns the clients' votes on the target.")
        slope: float = Field(5.0, gt=0, description="How fast alpha grows from 0 to 1.")
        accumulate: int = Field(4, ge=2, description="Batches of a matching step.")
        vote_steps: int = Field(32, ge=1, description="Server steps on votes in a round.")
        vote_batch: int = Field(16, ge=1, description="Public rows of such a step.")
        server_lr: float = Field(1e-3, gt=0, description="Rate of the server's Adam.")
        broadcast: Literal["voted", "mean"] = Field(
            "mean", description="What clients begin from: the mean (the notebook), or the model after votes."
        )

    wire = Wire(
        down={
            "model": Part(PARAMS),
            "reference": Part(PARAMS, note="F_g"),
            "domain": Part(ANY, note="D, (2, d + 1)"),
            "target": Part(ANY, note="the public inputs"),
        },
        up={
            "delta": Part(PARAMS, update=True),
            "domain": Part(ANY),
            "votes": Part(ANY, note="1 for the class said, (rows, C)"),
        },
        server={"model": Part(PARAMS), "start": Part(PARAMS), "domain": Part(ANY), "opt": Part(ANY)},
    )
    needs: ClassVar[frozenset[str]] = frozenset({"classes", "features", "public"})
    no_rule = "domain heads and votes are averaged beside the models, which a rule would not see"

    def splits_model(self) -> bool:
        return True

    def check(self, config: Config) -> list[str]:
        found, s = [], self.settings
        if config.local.steps is None:
            found.append("local.steps: null found, fedka's alpha counts steps; allowed: a number of steps")
        if not config.federation.public_rows:
            found.append(
                "federation.public.rows: 0 found, fedka reads the target's inputs; allowed: a whole number >= 1"
            )
        if config.federation.public_rows and s.voting and s.vote_batch > config.federation.public_rows:
            found.append(
                f"method.vote_batch: {s.vote_batch} found, allowed: at most the {config.federation.public_rows} public rows"
            )
        return found

    def reads_rounds(self) -> str | None:
        s = self.settings
        return (
            "method.slope: alpha grows with the share of all rounds"
            if s.adversarial or s.matching or s.voting
            else None
        )

    def init(self, task: Task, key: int) -> Tree:
        model, d = task.init_params(key), task.feature_size
        like: Any = {"dtype": task.dtype, "device": task.device}
        drawn = torch.rand(2, d + 1, generator=keys.torch_generator(key), dtype=torch.float64) * 2 - 1
        opt = optimizers.adam().init(model) if self.settings.voting else {}
        return {"model": model, "start": model, "domain": (drawn / math.sqrt(d)).to(**like), "opt": opt}

    @visit
    def train(self, task: Task) -> Visit:
        s, ahead = self.settings, work(self.local)
        many = self.local.steps or 0

        def start(client: ClientContext) -> Tree:
            shared, done = client.shared, (client.info.round - 1) / client.info.rounds
            model = {**shared["model"], DOMAIN: shared["domain"]} if s.adversarial else dict(shared["model"])
            return {
                "model": model,
                "target": shared["target"],
                "reference": shared["model" if s.broadcast == "voted" else "reference"],
                "done": done.to(task.dtype),
                "each": (1 / client.info.rounds / max(1, many)).to(task.dtype),
            }

        def formula(params: Tree, carry: Tree, batch: Any, key: Tensor) -> tuple[Tree, Tree]:
            if isinstance(batch, tuple):
                return self._matched(task, params, carry, batch, key), {}
            changes = {"done": carry["done"] + carry["each"]}
            if not s.adversarial:
                return gradient(task.loss, params, batch, key), changes
            alpha = self._alpha(carry["done"])

            def loss(p: Tree, b: Any, k: Any) -> Tensor:
                x = drawn_rows(carry["target"], k, len(b["y"]))
                plain = {n: v for n, v in p.items() if n != DOMAIN}
                with task.training(b, k):
                    h, away = task.features(plain, b["x"]), task.features(plain, x)
                ce = task.cross_entropy(task.classify(task.classifier(plain), h), b["y"], k)
                return ce + domain_loss(p[DOMAIN], h, 0, alpha) + domain_loss(p[DOMAIN], away, 1, alpha)

            return gradient(loss, params, batch, key), changes

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            model = {n: v for n, v in carry["model"].items() if n != DOMAIN}
            sent = {"delta": tree.sub(model, client.shared["model"])}
            if s.adversarial:
                sent["domain"] = carry["model"][DOMAIN]
            if s.voting:
                said = task.apply(model, carry["target"]).argmax(-1)
                sent["votes"] = (said[:, None] == torch.arange(task.classes, device=said.device)).to(task.dtype)
            return sent, client.own

        phases: list[Any] = [(ahead, None)]
        if s.matching:
            phases.append((steps(max(1, many // s.accumulate), batches=s.accumulate), None))
        made = sgd_visit(task.loss, self.local, start=start, grad=formula, end=end, phases=phases)
        return made._replace(local=lambda carry: {n: v for n, v in carry["model"].items() if n != DOMAIN})

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, x = self.settings, fed.public()["x"]
        shared = {"model": state["start"], "domain": state["domain"], "target": x}
        if s.broadcast == "mean":
            shared["reference"] = state["model"]
        folds = [mean("delta", weight="one")]
        folds += [mean("domain", weight="one")] if s.adversarial else []
        folds += [total("votes")] if s.voting else []
        got = fed.ask(self.train, fed.sample(), shared=shared, fold=folds)
        if not len(got):
            return state
        start = tree.add(state["start"], got.folded["delta"])
        start = task.keep_averages(start, state["start"], got.folded["delta"])
        domain = got.folded["domain"] if s.adversarial else state["domain"]
        model, opt = start, state["opt"]
        if s.voting:
            labels = got.folded["votes"].argmax(-1)  # of equal numbers the first
            alpha = float(self._alpha(torch.tensor(fed.round / fed.rounds)))
            model, opt = self._vote(task, start, opt, x, labels, alpha, fed.key("votes"))
        return {"model": model, "start": model if s.broadcast == "voted" else start, "domain": domain, "opt": opt}

    def _vote(
        self, task: Task, model: Tree, opt: Tree, x: Tensor, labels: Tensor, alpha: float, key: int
    ) -> tuple[Tree, Tree]:
        """Return a model after the server's steps on voted labels (R,) of the public inputs, and its optimizer's state."""
        s, rng, adam = self.settings, keys.torch_generator(key), optimizers.adam()

        def loss(params: Tree, rows: Tensor) -> Tensor:
            return alpha * task.cross_entropy(task.apply(params, x[rows]), labels[rows]).mean()

        for _ in range(s.vote_steps):
            rows = torch.randperm(len(x), generator=rng)[: s.vote_batch].to(x.device)
            model, opt = adam.update(torch.func.grad(loss)(model, rows), opt, model, s.server_lr)
        return model, opt

    def _alpha(self, done: Tensor) -> Tensor:
        """Return alpha of a share of all steps, 0-d."""
        return 2 / (1 + torch.exp(-self.settings.slope * done)) - 1

    def _matched(self, task: Task, params: Tree, carry: Tree, batches: Any, key: Tensor) -> Tree:
        """Return the gradient of a matching step: over the batches the mean distance of features to the global model's on the target."""
        fixed = tree.detach(carry["reference"])

        def loss(p: Tree) -> Tensor:
            plain, apart = {n: v for n, v in p.items() if n != DOMAIN}, []
            for i, batch in enumerate(batches):
                k = keys.fold(key, i)
                x = drawn_rows(carry["target"], k, len(batch["y"]))
                with task.training(batch, k):
                    h = task.features(plain, batch["x"])
                apart.append(mmd(h, task.features(fixed, x), batch["w"]))
            return self._alpha(carry["done"]) * sum(apart) / len(apart)

        return grad(loss)(params)[0]

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: client.shared["model"])


def reversed_gradient(x: Tensor, alpha: Any) -> Tensor:
    """Return x, whose gradient is turned round and multiplied by alpha."""
    return x * -alpha + (x * (1 + alpha)).detach()


def domain_loss(head: Tensor, h: Tensor, domain: int, alpha: Any) -> Tensor:
    """Return cross-entropy (B,) of a domain head (2, d + 1) against one domain, behind the gradient reversal."""
    logits = F.linear(reversed_gradient(h, alpha), head[:, :-1], head[:, -1])
    return -torch.log_softmax(logits, -1)[:, domain]


def drawn_rows(x: Tensor, key: Tensor, n: int) -> Tensor:
    """Return n rows of x (R, ...), drawn evenly from a key, with repetition."""
    rows = (keys.uniform(keys.fold(key, 613), (n,), torch.float64) * len(x)).long()
    return x[rows.clamp(max=len(x) - 1)]


def mmd(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of rows a (n, d) of weights w (n,), 0 on padding, and rows b (m, d),
    biased, under a sum of Gaussian kernels."""
    rows = torch.cat([a, b])
    share = torch.cat([w / w.sum().clamp(min=1), torch.full_like(b[:, 0], -1 / len(b))])
    apart = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    pairs = share.abs()[:, None] * share.abs() * (1 - torch.eye(len(rows), dtype=a.dtype, device=a.device))
    width = ((pairs * apart).sum() / pairs.sum() / FACTOR ** (KERNELS // 2)).detach().clamp(min=1e-12)
    kernel = sum(torch.exp(-apart / (width * FACTOR**i)) for i in range(KERNELS))
    return (share[:, None] * share * kernel).sum()
