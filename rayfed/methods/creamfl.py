"""CreamFL: clients with one or two modalities and models of their own teach a server through representations of public pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import (
    ANY,
    PARAMS,
    Method,
    MethodSettings,
    Part,
    Phase,
    Visit,
    Wire,
    keys,
    model_of,
    optimizers,
    sgd_visit,
    tree,
    visit,
)
from rayfed.lazy import F, torch
from rayfed.methods._bases.over_modalities import counted, nothing
from rayfed.training import clipped, work
from rayfed.visits import epochs, once, whole
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.fed import Replies
    from rayfed.task.retrieval import Retrieval
    from rayfed.visits import Batch

BLOCK = 1024  # rows of a table of inner products with all public features
CLIP = 2.0  # norm of a distillation step's gradient [code]


class CreamFL(Method):
    """Yu et al. 2023, "Multimodal Federated Learning via Contrastive Representation Ensemble" (ICLR 2023, 2302.08888), as its code does it.

    Public pairs j = 1 .. P (`federation.public`, whole rows), two modalities I and T, features of length 1; a server model (f_I, f_T), and
    at each client a model of its own of which no weight travels, with one modality or both (`federation.modalities.owners`). A round:
        1 the server trains on the pairs, `passes` times over them, by its own contrast (`task.kind: retrieval`);
        2 it sends G_I, G_T, its features of all pairs;
        3 a client, `local.epochs` times: one pass over its rows by its own loss, and one over the pairs on gamma (L_inter + L_intra): v
          its feature of a modality, g the server's of the same, v' its own as the round began,
            L_inter = CE(v G_other^T / tau, j), L_intra = log(1 + exp((v . v' - v . g) / tau)); with two modalities the sum of L_inter
            and the mean of L_intra; `scale: true` brings L_inter to L_intra's value;
        4 it sends its features V of all pairs, in evaluation;
        5 of each modality V[j] = sum_k a_k[j] V_k[j], a[j] = softmax over k of log softmax_l(V_k[j] . G_other[l]) at l = j (`aggregate:
        mean`:
          evenly); without an upload of a modality its part is left out, where the code would fail;
        6 the server learns beta |f(j) - V[j]|^2 (a mean over numbers) in one pass, gradients clipped to a norm of 2; a modality counts
          twice where clients of one and of both modalities sent it [code].
    `beta: 0` is a server on public pairs alone, to the bit: the arm to compare with. `gamma: 0`: clients train alone. The global model
    is the server's; where clients have several families it has the first one's network. `pass_last` puts step 1 behind step 6, before
    scoring.
    Ours: the server's contrast and the class loss of single modalities are plain, without the code's probabilistic embeddings and margins;
    clients begin alike and their optimizers start afresh in each round.
    Down: G (P 2 d floats). Up: V (P d for each modality that a client has), which these are. Kept at clients: their models.
    At the server: its model and Adam's state.
    """

    class Settings(MethodSettings):
        passes: int = Field(
            1, ge=1, description="Passes of the server over the public pairs in a round, on its own loss."
        )
        server_lr: float = Field(1e-3, gt=0, description="Adam's rate at the server.")
        server_batch: int = Field(64, ge=2, description="Pairs in a step of the server.")
        gamma: float = Field(
            0.5, ge=0, description="Weight of the clients' contrast with public pairs; 0: they train alone."
        )
        tau: float = Field(0.5, gt=0, description="Its temperature.")
        scale: bool = Field(False, description="Bring the contrast between modalities to the size of that within one.")
        beta: float = Field(0.3, ge=0, description="Weight of distillation; 0: a server on public pairs alone.")
        aggregate: Literal["contrast", "mean"] = Field(
            "contrast", description="Weights of uploads, pair by pair: by contrast with the other modality, or even."
        )
        pass_last: bool = Field(False, description="Put the server's own pass after distillation, before it is scored.")

    wire: ClassVar[Wire] = Wire(
        down={
            "features": Part(tensor("P", 2, "d"), note="G_I and G_T"),
            "first": Part(tensor(dtype="int64"), note="number of the first public row"),
        },
        up={
            "features": Part(tensor("P", 2, "d"), note="V, 0 in what the client lacks"),
            "has": Part(tensor(2), note="1 for each modality that it has"),
        },
        keep={"model": Part(PARAMS, private=True)},
        server={"model": Part(ANY, note="f_I and f_T"), "adam": Part(ANY)},
    )
    needs: ClassVar[frozenset[str]] = frozenset({"two sides", "public"})
    first_family = True
    reads_rows = True
    no_privacy = "contrasts features of public pairs"

    def splits_model(self) -> bool:
        return True

    def cost(self, part: str, sent: Tree) -> int:
        """Return bytes without the features of modalities that a client lacks."""
        if part != "features" or sent.dim() != 4:  # type: ignore[attr-defined]
            return tree.nbytes(sent)
        x: Tensor = sent  # type: ignore[assignment]
        return int((x != 0).any(3).any(1).sum()) * x.shape[1] * x.shape[3] * x.element_size()

    def init(self, task: Task, key: int) -> Tree:
        model = task.of_family(0).init_params(key)
        return {"model": model, "adam": optimizers.adam().init(model)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"model": task.initial}

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings
        of: Retrieval = task  # type: ignore[assignment]
        rows = self.config.federation.public_rows

        def start(client: ClientContext) -> Tree:
            taught = {"old": client.own["model"], **client.shared} if s.gamma else {}
            return {"model": client.own["model"], "rows": nothing(task), **taught}

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            with task.training(batch, key):
                v = of.embed(params, batch["x"])
            old = of.embed(carry["old"], batch["x"]).detach()
            at = (batch["row"] - carry["first"]).clamp(0, rows - 1)
            return s.gamma * taught(v, old, carry["features"], at, carry["rows"] > 0, batch["w"], s)

        count = Phase(
            once(), lambda carry, batch, key: {**carry, "rows": carry["rows"] + counted(task, batch)}, counts=False
        )
        over = work(self.local) if self.local.steps else epochs(1)
        own = sgd_visit(task.loss, self.local, start=start, phases=[(over, None)], before=[count])
        public = sgd_visit(task.loss, self.local, objective=objective, phases=[(epochs(1, "public"), None)])
        turn = [own.phases[1], *([public.phases[0]._replace(counts=False)] if s.gamma else [])]

        def enter(client: ClientContext, carry: Tree) -> Tree:
            d = of.feature_size
            return {
                "model": carry["model"],
                "rows": carry["rows"],
                "v": torch.zeros(rows, 2, d, dtype=task.dtype, device=task.device),
            }

        def embed(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            return {**carry, "v": of.embed(carry["model"], batch["x"])}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            has = (carry["rows"] > 0).to(task.dtype)
            v = torch.where(has[None, :, None] > 0, carry["v"], 0.0)
            return {"features": v, "has": has}, {"model": carry["model"]}

        times = 1 if self.local.steps else self.local.epochs or 1
        phases = [own.phases[0], *turn * times, Phase(whole("public"), embed, enter, counts=False)]
        return Visit(own.begin, phases, end, local=lambda carry: carry["model"])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        of: Retrieval = task.of_family(0)  # type: ignore[assignment]
        public, server = fed.public(), state
        if not s.pass_last:
            server = self._pass(of, server, public, fed)
        with torch.no_grad():
            g = of.embed(server["model"], public["x"])
        first = torch.tensor(int(fed.federation.public[0]))
        got = fed.ask(self.train, fed.sample(), shared={"features": g, "first": first})
        if s.beta and got.ids:
            server = self._distilled(of, server, public, got, g, fed.key("distillation"))
        return self._pass(of, server, public, fed) if s.pass_last else server

    def _pass(self, task: Retrieval, server: Tree, public: Tree, fed: Fed) -> Tree:
        """Return the server after its passes over the pairs, by its own loss."""

        def loss(params: Tree, rows: Tensor) -> Tensor:
            return task.loss(params, {n: x[rows] for n, x in public.items()}).mean()

        for i in range(self.settings.passes):
            server = self._stepped(server, loss, len(public["w"]), fed.key(f"pass {i}"))
        return server

    def _distilled(self, task: Retrieval, server: Tree, public: Tree, got: Replies, g: Tensor, key: int) -> Tree:
        """Return the server after a pass towards what clients sent."""
        sent, has = got.stacked("features"), got.stacked("has") > 0
        targets = []
        for m in (0, 1):
            theirs = has[:, m]
            if theirs.any():
                number = len(has[theirs].sum(1).unique())  # clients of one modality, of both
                v = ensemble(sent[theirs][:, :, m], g[:, 1 - m], self.settings.aggregate)
                targets.append((m, number * self.settings.beta, v))

        def loss(params: Tree, rows: Tensor) -> Tensor:
            e = task.embed(params, public["x"][rows])
            return torch.stack([weight * (e[:, m] - v[rows]).square().mean() for m, weight, v in targets]).sum()

        return self._stepped(server, loss, len(g), key, CLIP)

    def _stepped(self, server: Tree, loss: Any, n: int, key: int, clip: float | None = None) -> Tree:
        """Return the server after one pass over n pairs in a fresh order."""
        adam, model, state = optimizers.adam(), server["model"], server["adam"]
        for rows in torch.randperm(n, generator=keys.torch_generator(key)).split(self.settings.server_batch):
            grads = torch.func.grad(loss)(model, rows)
            grads = grads if clip is None else clipped(grads, clip)
            model, state = adam.update(grads, state, model, self.settings.server_lr)
        return {"model": model, "adam": state}

    def serve(self, state: Tree) -> Tree:
        return {}

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: client.own["model"])


def taught(v: Tensor, old: Tensor, g: Tensor, at: Tensor, has: Tensor, w: Tensor, s: CreamFL.Settings) -> Tensor:
    """Return L_inter + L_intra of each row, (B,): v, old (B, 2, d), g (P, 2, d), at (B,) places of the rows in it, has (2,), w (B,)."""
    inter, intra = torch.zeros_like(w), torch.zeros_like(w)
    number = has.to(v.dtype).sum().clamp(min=1)
    for m in (0, 1):
        other = F.cross_entropy(v[:, m] @ g[:, 1 - m].T / s.tau, at, reduction="none")
        near, far = (v[:, m] * g[at, m]).sum(-1), (v[:, m] * old[:, m]).sum(-1)
        inter = inter + torch.where(has[m], other, 0.0)
        intra = intra + torch.where(has[m], F.softplus((far - near) / s.tau), 0.0) / number
    if s.scale:
        one, two = ((x * w).sum().detach() for x in (intra, inter))
        inter = inter * one / two.clamp(min=1e-12)
    return inter + intra


def ensemble(v: Tensor, g: Tensor, how: str) -> Tensor:
    """Return V (P, d) of the uploads of one modality v (K, P, d); g (P, d): the server's features of the other one."""
    a = weights(v, g) if how == "contrast" else torch.full(v.shape[:2], 1 / len(v), dtype=v.dtype)
    return (a[..., None].to(v.device) * v).sum(0) if len(v) > 1 else v[0]


def weights(v: Tensor, g: Tensor) -> Tensor:
    """Return a (K, P), which sum to 1 over uploads: softmax over k of log softmax_l(v_k[j] . g[l]) at l = j."""
    found: Sequence[Tensor] = [
        torch.cat([
            (x * g[i : i + BLOCK]).sum(-1) - torch.logsumexp(x @ g.T, -1)
            for i, x in zip(range(0, len(g), BLOCK), one.split(BLOCK), strict=True)
        ])
        for one in v
    ]  # fmt: skip
    return torch.softmax(torch.stack(list(found)), 0)
