"""FedConv: the server learns filters that compress the big model's weights to its clients' sizes, and others that dilate them back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import (
    ANY,
    Method,
    MethodSettings,
    Part,
    Visit,
    Wire,
    keys,
    mean,
    model_of,
    optimizers,
    sgd_visit,
    tree,
    visit,
)
from rayfed.errors import FailsAgain
from rayfed.lazy import F, torch
from rayfed.models import families
from rayfed.task import needs_classes

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Fed, Task, Tree
    from rayfed.partition import Federation

HELD = 0.2  # share of the public rows by which the best epoch of filters is chosen


class FedConv(Method):
    """Shen et al. 2024, "FedConv: A Learning-on-Model Paradigm for Heterogeneous Federated Clients" (MobiSys 2024, 2502.20639), as its
    code.

    The first family of `task.model` is the big model W, the others are the same network with narrower layers. The server has public rows
    with labels. MLR(x) is 0.85 x above 0 and 0.001 x below. A round:
        1 W: `server_epochs` of Adam on public rows;
        2 each narrower family j: W'_j = MLR(conv(p W)) tensor by tensor, a weight-normalised kernel of (o - o' + 1) x (i - i' + 1) and a
        scalar p
          for each position of a convolution's kernel (there p W + W); Adam on CE of the narrow network with W'_j, over the filters alone,
          `filter_epochs` at a rate that falls along a cosine, and the epoch that is best on a fifth of the public rows is kept;
        3 clients train what they are sent, as the config says, and send it back;
        4 each client of a narrower family: What_k = MLR(transposed conv(W_k)), its own filters learned in the same way for the big network;
          of the big one What_k is what it sent;
        5 W <- sum_k n_k V_k * What_k / sum_k n_k, V_k as large as W: `weight_epochs` of Adam on public rows; they are kept.
    The global model is W; a client is served its family's W'_j, of W as it is then. All clients of the first family and nothing trained
    at the server is FedAvg to the bit.
    Ours: V starts at 1 and kernels as the delta that cuts out the first rows and columns (`start: normal` draws both, as the code does),
    tensors of one shape on both sides are taken as they are, and big clients get no fine-tuning of their own at the server.
    Down: the family's weights. Up: their change, n_k. Kept at clients: nothing. At the server: W, filters of each family and client, V.
    """

    class Settings(MethodSettings):
        server_epochs: int = Field(2, ge=0, description="Passes of the big model over the public rows in a round.")
        server_lr: float = Field(1e-4, gt=0, description="Adam's rate of these.")
        filter_epochs: int = Field(5, ge=0, description="Passes of filters over the public rows in a round.")
        filter_lr: float = Field(1e-3, gt=0, description="Adam's first rate of filters; it falls to a tenth.")
        weight_epochs: int = Field(
            5, ge=0, description="Passes of the weights V over the public rows in a round; 0: they stay."
        )
        weight_lr: float = Field(1e-3, gt=0, description="Adam's rate of these.")
        batch: int = Field(32, ge=1, description="Public rows in a step.")
        clients: bool = Field(
            True, description="Whether clients take part; false: the server's public rows alone, to compare with."
        )
        activation: Literal["mlr", "none"] = Field("mlr", description="What filtered weights go through.")
        start: Literal["slice", "normal"] = Field(
            "slice",
            description="Filters start as a cut of the first rows and columns and V at 1, or both drawn (the code).",
        )

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(ANY, note="W, or W'_j")},
        up={"delta": Part(ANY, note="its change in local training")},
        server={
            "model": Part(ANY, note="W"),
            "compress": Part(ANY, note="filters by family"),
            "dilate": Part(ANY, note="filters by client"),
            "weights": Part(ANY, note="V by client"),
        },
    )
    needs: ClassVar[frozenset[str]] = frozenset({"classes", "public labels"})
    first_family = True
    no_rule = "each client's weights are dilated and weighed by themselves"
    no_buffers = "running statistics cannot be filtered"

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "fedconv's server trains on public rows with labels")

    def init(self, task: Task, key: int) -> Tree:
        big = task.of_family(0)
        kinds = {n: shapes(big, t) for n, t in narrower(task).items()}

        def drawn(of: Mapping[str, Any], purpose: str) -> Tree:
            return filters(of, keys.key(key, 0, -1, purpose), self.settings.start == "normal", task.dtype)

        names, theirs = list(task.families), task.family
        dilate, weights = {}, {}
        for c in range(task.population):
            name = "" if theirs is None else names[int(theirs[c])]
            if name in kinds:
                dilate[str(c)] = drawn(kinds[name], f"dilation {c}")
            ones = tree.map(torch.ones_like, big.params_like)
            weights[str(c)] = ones if self.settings.start == "slice" else noise(ones, keys.key(key, 0, c, "weights"))
        made = {n: drawn(s, f"compression {n}") for n, s in kinds.items()}
        return {"model": big.init_params(key), "compress": made, "dilate": dilate, "weights": weights}

    @visit
    def train(self, task: Task) -> Visit:
        return sgd_visit(task.loss, self.local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, big, public = self.settings, task.of_family(0), fed.public()
        rows = torch.randperm(len(public["w"]), generator=keys.torch_generator(fed.key("held public rows")))
        held, rest = rows[: int(HELD * len(rows))], rows[int(HELD * len(rows)) :]

        def fitted(theta: Tree, loss: Any, epochs: int, lr: float, purpose: str, choose: bool) -> Tree:
            given = (rest, held) if choose else (rows, held[:0])
            return learned(theta, loss, public, *given, epochs, lr, s.batch, fed.key(purpose), choose)

        w = fitted(state["model"], big.loss, s.server_epochs, s.server_lr, "server", False)
        sent, compress = {"": w}, dict(state["compress"])
        for name, narrow in narrower(task).items():

            def sub(theta: Tree, batch: Any, narrow: Task = narrow) -> Tensor:
                return narrow.loss(compressed(theta, w, s.activation), batch)

            compress[name] = fitted(compress[name], sub, s.filter_epochs, s.filter_lr, f"compression {name}", True)
            sent[name] = tree.detach(compressed(compress[name], w, s.activation))
        dilate, mean_change = dict(state["dilate"]), None
        hats: dict[int, tuple[Tree, bool]] = {}  # client -> (as large as W, whether it was dilated)
        n: dict[int, float] = {}
        sampled = fed.sample() if s.clients else ()
        for number, name in enumerate(task.families or ("",)):
            clients = [c for c in sampled if task.family is None or task.family[c] == number]
            if not clients:
                continue
            first = sent[name if number else ""]
            got = fed.ask(self.train, clients, shared={"model": first}, fold=mean("delta"), keep="delta")
            n |= dict(zip(got.ids, got.examples.tolist(), strict=True))
            if got.ids and not number:
                mean_change = got.folded["delta"], float(got.examples.sum())
            for c, delta in got.gather("delta").items():
                theirs = tree.add(first, delta)
                if number:

                    def whole(theta: Tree, batch: Any, theirs: Tree = theirs) -> Tensor:
                        return big.loss(dilated(theta, theirs, s.activation), batch)

                    key = str(c)
                    dilate[key] = fitted(dilate[key], whole, s.filter_epochs, s.filter_lr, f"dilation {c}", True)
                    theirs = tree.detach(dilated(dilate[key], theirs, s.activation))
                hats[c] = theirs, bool(number)
        out = {**state, "compress": compress, "dilate": dilate}
        if not hats:
            return {**out, "model": w}
        if not s.weight_epochs and s.start == "slice":  # V is 1: a plain mean, of the big clients as FedAvg folds it
            return {**out, "model": plain_mean(w, mean_change, {c: h for c, (h, small) in hats.items() if small}, n)}
        total = sum(n.values())
        v: Tree = {str(c): state["weights"][str(c)] for c in hats}

        def merged(theta: Tree) -> Tree:
            parts = [tree.scale(tree.map(torch.mul, theta[str(c)], h), n[c] / total) for c, (h, _) in hats.items()]
            return tree.map(lambda *x: sum(x), *parts)

        v = fitted(
            v, lambda theta, batch: big.loss(merged(theta), batch), s.weight_epochs, s.weight_lr, "weights", False
        )
        return {**out, "model": merged(v), "weights": {**state["weights"], **v}}

    def serve(self, state: Tree) -> Tree:
        small = {n: compressed(f, state["model"], self.settings.activation) for n, f in state["compress"].items()}
        return {"model": {"": state["model"], **small}}

    def view(self, task: Task) -> Visit:
        found = families.configs(self.config)
        name = next((n for n, c in found.items() if c.task.model == task.config.task.model), "")
        return model_of(lambda client: client.shared["model"]["" if name == next(iter(found)) else name])


def narrower(task: Task) -> dict[str, Task]:
    """Return the tasks of all families but the first."""
    return dict(list(task.families.items())[1:])


def shapes(big: Task, narrow: Task) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return name -> (shape in the big network, in the narrow one) of the tensors that differ. FailsAgain where they cannot be
    compressed."""
    a, b = ({n: tuple(p.shape) for n, p in t.params_like.items()} for t in (big, narrow))
    wrong = next((n for n in {**a, **b} if n not in a or n not in b or len(a[n]) != len(b[n])), None)
    wrong = wrong or next(
        (n for n in a if a[n][2:] != b[n][2:] or any(x < y for x, y in zip(a[n], b[n], strict=True))), None
    )
    if wrong is not None:
        one, other = a.get(wrong, "absent"), b.get(wrong, "absent")
        raise FailsAgain(
            f"task.model: {wrong} is {one} in the first family and {other} in another; allowed: the same network with layers that are "
            "at most as wide"
        )
    return {n: (a[n], b[n]) for n in a if a[n] != b[n]}


def filters(of: Mapping[str, Any], key: int, drawn: bool, dtype: Any) -> Tree:
    """Return filters by name: kernels v (K, ko, ki), their sizes g (K,), projections p (K,); K positions of a convolution, 1 of a
    matrix."""
    out = {}
    for i, (name, (a, b)) in enumerate(of.items()):
        o, i2 = (a[0] - b[0] + 1, a[1] - b[1] + 1) if len(a) > 1 else (1, a[0] - b[0] + 1)
        k = math.prod(a[2:]) if len(a) > 2 else 1
        if drawn:
            v = torch.randn(k, o, i2, generator=keys.torch_generator(keys.key(key, 0, i, "kernel")), dtype=dtype)
        else:
            v = torch.zeros(k, o, i2, dtype=dtype)
            v[:, 0, 0] = 1
        first = 0.0 if len(a) > 2 else 1.0  # a convolution's goes around it
        out[name] = {"v": v, "g": torch.ones(k, dtype=dtype), "p": torch.full((k,), first, dtype=dtype)}
    return out


def noise(like: Tree, key: int) -> Tree:
    """Return a tree of standard normal numbers."""
    rng = keys.torch_generator(key)
    return tree.map(lambda x: torch.randn(x.shape, generator=rng, dtype=x.dtype), like)


def mlr(x: Tensor, activation: str) -> Tensor:
    """Return 0.85 x above 0 and 0.001 x below; x itself under `none`."""
    return torch.where(x > 0, 0.85 * x, 0.001 * x) if activation == "mlr" else x


def compressed(theta: Tree, params: Tree, activation: str) -> Tree:
    """Return the narrow network's weights of the big one's; tensors without a filter are taken as they are."""
    return {n: mlr(_filtered(theta[n], p, F.conv2d), activation) if n in theta else p for n, p in params.items()}


def dilated(theta: Tree, params: Tree, activation: str) -> Tree:
    """Return the big network's weights of a narrow one's, by transposed convolutions."""
    return {
        n: mlr(_filtered(theta[n], p, F.conv_transpose2d), activation) if n in theta else p for n, p in params.items()
    }


def _filtered(f: Tree, x: Tensor, convolve: Callable[..., Tensor]) -> Tensor:
    kernel = f["g"][:, None, None] * f["v"] / f["v"].flatten(1).norm(dim=1)[:, None, None]
    places = x[None] if x.dim() == 1 else x.flatten(2).permute(2, 0, 1).squeeze(0) if x.dim() > 2 else x
    places = places if places.dim() == 3 else places[None]
    k = len(places)
    projected = f["p"][:, None, None] * places + (places if x.dim() > 2 else 0)
    out = convolve(projected[None], kernel[:, None], groups=k)[0]
    if x.dim() > 2:
        return out.permute(1, 2, 0).reshape(*out.shape[1:], *x.shape[2:])
    return out[0, 0] if x.dim() == 1 else out[0]


def plain_mean(w: Tree, change: tuple[Tree, float] | None, hats: Mapping[int, Tree], n: Mapping[int, float]) -> Tree:
    """Return w plus the mean change, by examples: that of the big clients, (mean, examples), and of each dilated model."""
    total = sum(n.values())
    out = w
    if change is not None:
        out = tree.add(out, change[0], change[1] / total)
    for c, h in hats.items():
        out = tree.add(out, tree.sub(h, w), n[c] / total)
    return out


def learned(
    theta: Tree,
    loss: Callable[[Tree, Any], Tensor],
    public: Mapping[str, Tensor],
    rows: Tensor,
    held: Tensor,
    epochs: int,
    lr: float,
    batch: int,
    key: int,
    choose: bool,
) -> Tree:
    """Return theta after `epochs` of Adam on loss(theta, batch) (B,) over public rows; choose: the epoch with the least loss on the held
    ones, the start among them, at a rate that falls along a cosine to a tenth."""
    if not epochs:
        return theta
    adam, rng = optimizers.adam(), keys.torch_generator(key)
    state, best, least = adam.init(theta), theta, math.inf

    def of(theta: Tree, at: Tensor) -> Tensor:
        return loss(theta, {n: x[at] for n, x in public.items()}).mean()

    slope = torch.func.grad(of)
    for epoch in range(epochs + 1):
        if choose:
            with torch.no_grad():
                now = float(of(theta, held if len(held) else rows))
            best, least = (theta, now) if now < least else (best, least)
        if epoch == epochs:
            break
        rate = lr * (0.1 + 0.9 * (1 + math.cos(math.pi * epoch / epochs)) / 2) if choose else lr
        for at in rows[torch.randperm(len(rows), generator=rng)].split(batch):
            theta, state = adam.update(slope(theta, at), state, theta, rate)
    return best if choose else theta
