"""FRL: clients rank the edges of a frozen random network, and the server counts the votes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Wire, attack, keys, sgd_visit, total, tree, visit
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config


class FRL(Method):
    """Mozaffari et al. 2023, "Every Vote Counts: Ranking-Based Training of Federated Learning to Resist Poisoning Attacks" (2110.04350).

    Drawn once from the seed, layer by layer of n_l edges with fan-in f: weights w of +-sqrt(2 / f), which never change, and scores s,
    uniform in [0, 1 / sqrt(f)). A network is w * mask(s), mask(s) 1 on the n_l - floor((1 - k) n_l) largest scores. Biases are zero.
    Client i: E epochs of the config's optimizer on s from the server's scores, where a gradient passes the mask as if it were s
    (edge-popup); sends r_i, the rank 0 .. n_l - 1 of each edge by score. Server: R = sum_i r_i, and the edge that is j-th by R gets the
    j-th smallest score of before, so that scores are always the same numbers. Of equal ones the lower edge comes first [inferred].
    The published code draws scores on both sides of 0 and masks by their absolute values while it ranks the signed ones, so that the lowest
    ranked edges are kept, too: `scores: absolute`.
    Down: the ranking, n_l ceil(log2 n_l) bits of each layer; w is drawn from a seed that everybody has. Up: the same, r_i. Kept at clients:
    nothing. At the server: s, w, and the network that they are.
    A vote is no vector: transforms, rules of aggregation and attacks on updates other than `rank_reversal` are refused.
    """

    class Settings(MethodSettings):
        keep: float = Field(0.5, gt=0, le=1, description="k, the share of a layer's edges that a network has.")
        scores: Literal["signed", "absolute"] = Field(
            "signed", description="The largest scores are kept, or those of largest size (the published code)."
        )

    no_rule = "votes are counted, and have no mean"
    no_privacy = "sends rankings, which noise on gradients does not bound"
    no_buffers = "it trains no weights, and running statistics would be real numbers beside the votes"
    wire: ClassVar[Wire] = Wire(
        down={
            "scores": Part(PARAMS, note="a ranking"),
            "weights": Part(PARAMS, note="w, from the seed: nothing in a deployment"),
        },
        up={"ranks": Part(PARAMS, update=True, note="r_i, int64; zeros of biases")},
        server={"model": Part(PARAMS, note="w * mask(s)"), "scores": Part(PARAMS), "weights": Part(PARAMS)},
    )

    def check(self, config: Config) -> list[str]:
        problems, name = [], config.method.name
        if config.transforms:
            problems.append(
                f"transforms: {config.transforms[0].kind} found, but clients of {name} send rankings, which are no vectors"
            )
        for i, (chosen, made) in enumerate(zip(config.attacks, _attacks(config), strict=False)):
            if made.place != "data" and chosen.kind != "rank_reversal":
                problems.append(
                    f"attacks.{i}.kind: {chosen.kind} found, after which rankings are none; allowed: rank_reversal, attacks on data"
                )
        if config.task.model.name.startswith("hf:"):
            problems.append(
                f"task.model: {config.task.model.name} found, but {name} draws all weights anew, so that nothing is left of what it learnt "
                "from texts or pictures; allowed: a model that is not pretrained"
            )
        if config.init.from_ is not None:
            problems.append(
                f"init.from: {config.init.from_!r} found, but {name} draws its weights by a rule of its own; allowed: null"
            )
        return problems

    def cost(self, part: str, sent: Tree) -> int:
        if part == "weights":
            return 0
        each = [x[0].numel() for x in tree.values(sent) if x.dim() > 2]
        bits = sum(n * max(1, math.ceil(math.log2(n))) for n in each)
        return len(tree.values(sent)[0]) * math.ceil(bits / 8)

    def init(self, task: Task, key: int) -> Tree:
        weights, scores = {}, {}
        for number, (n, p) in enumerate(task.params_like.items()):
            if not votes(p):
                weights[n] = scores[n] = torch.zeros_like(p)
                continue
            fan = p[0].numel()
            of = keys.fold(torch.tensor(key), number)
            signs = torch.where(keys.uniform(keys.fold(of, 1), p.shape, p.dtype) < 0.5, -1.0, 1.0)
            drawn = keys.uniform(keys.fold(of, 2), p.shape, p.dtype)
            drawn = drawn if self.settings.scores == "signed" else 2 * drawn - 1
            weights[n], scores[n] = (signs * math.sqrt(2 / fan)).to(p), (drawn / math.sqrt(fan)).to(p)
        return {"model": self.network(weights, scores), "scores": scores, "weights": weights}

    def network(self, weights: Tree, scores: Tree, through: bool = False) -> Tree:
        """Return w * mask(s); through: with a gradient for s as if the mask were s."""

        def edges(w: Tensor, s: Tensor) -> Tensor:
            if not votes(w):
                return w
            seen = s.detach()
            mask = top(seen if self.settings.scores == "signed" else seen.abs(), self.settings.keep)
            return w * (mask + (s - seen) if through else mask)

        return tree.map(edges, weights, scores)

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"scores": client.shared["scores"], "weights": client.shared["weights"]}

        def objective(scores: Tree, carry: Tree, batch: Any, key: Tensor) -> Tensor:
            return task.loss(self.network(carry["weights"], scores, through=True), batch, key)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"ranks": tree.map(ranks, carry["scores"])}, client.own

        made = sgd_visit(task.loss, self.local, train="scores", start=start, objective=objective, end=end)
        return made._replace(local=lambda carry: self.network(carry["weights"], carry["scores"]))

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        shared = {"scores": state["scores"], "weights": state["weights"]}
        got = fed.ask(self.train, fed.sample(), shared=shared, fold=total("ranks"))
        if not got.ids:
            return state
        scores = tree.map(vote, state["scores"], got.folded["ranks"])
        return {**state, "model": self.network(state["weights"], scores), "scores": scores}


def _attacks(config: Config) -> list[Any]:
    """Return the attacks of a config whose settings are valid; none where one is not, which is said elsewhere."""
    wrong = [p for i, a in enumerate(config.attacks) for p in attack.KINDS.problems(a, f"attacks.{i}")]
    return [] if wrong else list(attack.of(config))


def votes(x: Tensor) -> bool:
    """Return whether a tensor holds edges, which are ranked; biases are not."""
    return x.dim() >= 2


def top(scores: Tensor, keep: float) -> Tensor:
    """Return 1.0 on the n - floor((1 - keep) n) largest entries, else 0.0; of equal ones the later are kept."""
    flat = scores.reshape(-1)
    none = math.floor((1 - keep) * len(flat) + 1e-9)
    order = torch.argsort(flat, stable=True)
    there = (torch.arange(len(flat), device=flat.device) >= none).to(flat.dtype)
    return torch.zeros_like(flat).scatter(0, order, there).reshape(scores.shape)


def ranks(scores: Tensor) -> Tensor:
    """Return the rank of each entry among all, 0 for the smallest, int64; zeros of what is not ranked."""
    if not votes(scores):
        return torch.zeros_like(scores, dtype=torch.int64)
    order = torch.argsort(scores.reshape(-1), stable=True)
    return torch.argsort(order, stable=True).reshape(scores.shape)


def vote(scores: Tensor, counted: Tensor) -> Tensor:
    """Return the scores' own numbers, handed out in the order of the summed ranks."""
    if not votes(scores):
        return scores
    flat = scores.reshape(-1)
    order = torch.argsort(counted.reshape(-1), stable=True)
    return torch.zeros_like(flat).scatter(0, order, flat.sort().values).reshape(scores.shape)
