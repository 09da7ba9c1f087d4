"""FedMerge: J models at the server, merged with learned weights into one model for each client."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Visit, Wire, keys, sgd_visit, tree, visit
from rayfed.errors import ConfigError
from rayfed.lazy import F, torch
from rayfed.methods._bases.clustered import least, losses
from rayfed.wire import stack, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree


COUNT = 8  # bytes of a client's n_i


class FedMerge(Method):
    """Chen et al. 2026, "FedMerge: Federated Personalization via Model Merging" (2504.06768), and the authors' code.

    w_i = softmax(W_i), W (N, J) logits, first 0; r_i = n_i / sum n over the round's clients.
    Client i: theta_i = sum_j w_ij Theta_j comes ready mixed; trains on L_i(theta) + mu |theta - theta_i|^2, sends u_i = new - theta_i.
    Server: G_ij = -w_ij <Theta_j - theta_i, u_i>, the derivative of <theta_i, -u_i> to W_ij; W <- W - c r_i G_ij with c such that
    the largest step is eta_w. Then, with the new w: Theta_j <- Theta_j + server_lr sum_i v_ij u_i, v_ij = w_ij r_i / sum_i' w_i'j r_i'.
    c is the closed form of the code's search, which overshoots by up to a hundredth of r_i G_ij / sum |G|.
    Ours: rows of absent clients stay, and sums are over those who replied; `step: client` gives each row its own c, so that
    clients do not share one step; whose weights were never learned is served the plain mean (W_i = 0), or with `newcomers:
    least_loss` the one model with the least loss on its training data. `inner: head` is the code's, `all` the chain rule's.
    The J models start from different random draws: from equal ones G = 0 for ever.
    Down: one merged model (P; in here all J and w_i go to an actor and are merged there, which is not counted). Up: update (P),
    n_i. Kept at clients: nothing. At the server: J models, W. With one model it is FedProx with twice this mu.
    """

    logs: ClassVar = {
        "weights/spread": ("largest distance of a mixture weight of the round's clients from 1 / J", "weight"),
        "weights/cosine_within": ("mean cosine of the mixture weights of two clients of one planted group", "cosine"),
        "weights/cosine_across": ("mean cosine of the mixture weights of two clients of two planted groups", "cosine"),
    }

    class Settings(MethodSettings):
        models: int = Field(3, ge=1, description="Number of models at the server, J.")
        eta_w: float = Field(0.1, ge=0, description="Largest change of a weight's logit in a round (code: 0.01).")
        inner: Literal["head", "all"] = Field(
            "head", description="Entries in the weights' inner products: the classifier's (code), or all (chain rule)."
        )
        step: Literal["round", "client"] = Field(
            "round", description="What has a largest logit step of eta_w: the round's clients as one, or each client."
        )
        mu: float = Field(0.01, ge=0, description="Weight of the squared distance to the merged model, locally.")
        server_lr: float = Field(1.0, gt=0, description="Step of the models along their weighted mean updates.")
        newcomers: Literal["uniform", "least_loss"] = Field(
            "uniform", description="A client without learned weights: the plain mean, or the model with the least loss."
        )

    wire: ClassVar[Wire] = Wire(
        down={
            "experts": Part(stack("K", PARAMS), note="the client's mixture of the models", routed=True),
            "weights": Part(tensor("J"), note="the mixture's weights; nothing in a deployment"),
        },
        up={"delta": Part(PARAMS, update=True)},
        server={
            "experts": Part(stack("K", PARAMS)),
            "logits": Part(tensor("N", "J"), note="W"),
            "seen": Part(tensor("N", dtype="bool"), note="whose W was learned"),
        },
    )
    universal: ClassVar[str | None] = None
    no_rule = "each of its models gets another mixture of the updates"

    def init(self, task: Task, key: int) -> Tree:
        self._names(task)  # refuses now what the first round would
        others = [task.fresh_params(keys.key(key, 0, -1, f"model {j}")) for j in range(1, self.settings.models)]
        return {
            "experts": tree.stack([task.init_params(key), *others]),
            "logits": torch.zeros(task.population, self.settings.models, dtype=torch.float64),
            "seen": torch.zeros(task.population, dtype=torch.bool),
        }

    @visit
    def train(self, task: Task) -> Visit:
        twice = 2 * self.settings.mu

        def start(client: ClientContext) -> Tree:
            merged = merge(client.mine["weights"], client.shared["experts"])
            return {"model": merged, "start": merged}

        def pull(gradient: Tree, carry: Tree) -> Tree:
            return tree.add(gradient, tree.sub(carry["model"], carry["start"]), twice)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"delta": tree.sub(carry["model"], carry["start"])}, client.own

        return sgd_visit(task.loss, self.local, start=start, hook=pull if twice else None, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        w = torch.softmax(state["logits"], 1)
        clients = fed.sample()
        mixtures = {c: {"weights": w[c]} for c in clients}
        got = fed.ask(self.train, clients, shared={"experts": state["experts"]}, mine=mixtures)
        if not got.ids:
            return state
        logits = state["logits"].clone()
        logits[got.ids] = self._step_logits(logits[got.ids], got, tree.unstack(state["experts"]), task)
        now = torch.softmax(logits[got.ids], 1)
        v = column_shares(now, got.examples)
        moved = tree.stack(got.linear("delta", v.T.contiguous()))
        self._log(fed, got.ids, now)
        experts = tree.add(state["experts"], moved, self.settings.server_lr)
        experts = task.keep_averages(experts, state["experts"], moved)
        return {"experts": experts, "logits": logits, "seen": state["seen"].index_fill(0, torch.tensor(got.ids), True)}

    def _step_logits(self, logits: Tensor, got: Replies, models: list[Tree], task: Task) -> Tensor:
        """Return the logits (n, J) of those who replied after a round's step."""
        names = self._names(task)
        # G does not change with a common shift, and equal models give 0
        apart = [tree.sub(m, models[0]) for m in models]
        g = slopes(torch.softmax(logits, 1), -got.dot("delta", apart, names))
        r = got.examples / got.examples.sum()
        return logits - logit_step(g * r[:, None], self.settings.eta_w, self.settings.step)

    def _names(self, task: Task) -> tuple[str, ...]:
        if self.settings.inner == "all":
            return ()
        if not task.head:
            raise ConfigError(
                "method.inner: head found, but the model has no trained classifier (no parameters of a submodule `head`); "
                "allowed here: all"
            )
        return task.head

    def _log(self, fed: Fed, ids: list[int], w: Tensor) -> None:
        """Log how far weights are from the plain mean's, and whether clients of one planted group mix alike."""
        fed.log("weights/spread", float((w - 1 / w.shape[1]).abs().max()))
        group = fed.planted(ids)
        alike = F.cosine_similarity(w[:, None], w[None], dim=-1)
        pair = torch.triu(torch.ones_like(alike, dtype=torch.bool), 1) & (group >= 0)[:, None] & (group >= 0)
        same = group[:, None] == group
        for name, these in (("within", pair & same), ("across", pair & ~same)):
            if bool(these.any()):
                fed.log(f"weights/cosine_{name}", float(alike[these].mean()))

    def cost(self, part: str, sent: Tree) -> int:
        if part == "weights":  # a deployment's server mixes by itself
            return 0
        return super().cost(part, sent) + (COUNT * len(tree.values(sent)[0]) if part == "delta" else 0)

    def serve(self, state: Tree) -> Tree:
        return {"experts": state["experts"]}

    def mine(self, state: Tree, client: int) -> Tree:
        n, j = state["logits"].shape
        if client >= n:
            return {"weights": torch.full((j,), 1 / j, dtype=torch.float64), "learned": torch.tensor(False)}
        return {"weights": torch.softmax(state["logits"][client], 0), "learned": state["seen"][client]}

    def view(self, task: Task) -> Visit:
        chooses = self.settings.newcomers == "least_loss"

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            merged = merge(client.mine["weights"], client.shared["experts"])
            if chooses:
                best = tree.pick(client.shared["experts"], least(carry))
                merged = tree.where(client.mine["learned"], merged, best)
            return {"model": merged}, client.own

        return Visit(lambda client: {}, [losses(task)] if chooses else [], end)

    def clusters(self, state: Tree) -> dict[int, int]:
        """Return client -> the model with its largest weight, for clients whose weights were learned."""
        rows = (state["logits"] * 1e9).round()  # opposite steps cancel to a tie but for the last bits
        return {i: int(rows[i].argmax()) for i in state["seen"].nonzero()[:, 0].tolist()}

    def experts(self, state: Tree) -> dict[int, Tree]:
        return dict(enumerate(tree.unstack(state["experts"])))


def merge(w: Tensor, models: Tree) -> Tree:
    """Return sum_j w_j Theta_j of weights (J,) and leaves (J, ...)."""
    return tree.map(lambda x: torch.tensordot(w.to(x.dtype), x, dims=1), models)


def slopes(w: Tensor, inner: Tensor) -> Tensor:
    """Return d <theta_i, g_i> / d W_ij = w_ij (<Theta_j, g_i> - sum_j' w_ij' <Theta_j', g_i>), (n, J); inner: <Theta_j, g_i> (n, J)."""
    return w * (inner - (w * inner).sum(1, keepdim=True))


def logit_step(g: Tensor, eta: float, step: str = "round") -> Tensor:
    """Return g (n, J) scaled so that its largest entry is `eta`, over all rows ("round") or in each ("client"); zeros stay."""
    largest = g.abs().amax(1, keepdim=True) if step == "client" else g.abs().max()
    return torch.where(largest > 0, g / largest * eta, torch.zeros_like(g))


def column_shares(w: Tensor, examples: Tensor) -> Tensor:
    """Return v_ij = w_ij r_i / sum_i' w_i'j r_i', (n, J), whose columns sum to 1."""
    v = w * examples[:, None]
    return v / v.sum(0)
