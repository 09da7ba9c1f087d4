"""Class Gaussians of a model's features, or of inputs, from sums that clients may share; and learning on draws from them (of features:
CCVR, Luo et al., NeurIPS 2021, 2106.05001; of inputs: ours)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from rayfed import tree
from rayfed.adapters import ranks
from rayfed.lazy import F, torch
from rayfed.visits import Phase, Visit, once

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Task, Tree
    from rayfed.config.schema import Config

Covariance = Literal["diag", "full", "shared"]
PARTS = ("rows", "sums", "squares")  # what `sums_visit` sends


class Gaussians(NamedTuple):
    """What is drawn of each class: counts (C,), means (C, d), and factors of the covariances, for which
    mean + factor z with z ~ N(0, I) is a draw: standard deviations (C, d), or matrices (C, d, d)."""

    counts: Tensor
    means: Tensor
    factors: Tensor

    def draw(self, y: Tensor, rng: torch.Generator, relu: bool = False) -> Tensor:
        """Draw a place (d,) of each label's class, (B, d)."""
        return draw(self, y, rng, relu)


class Source(Protocol):
    """What labelled places are drawn from: counts (C,) rows of each class, and `draw(labels (B,), rng, relu) -> (B, d)`."""

    @property
    def counts(self) -> Tensor: ...

    def draw(self, y: Tensor, rng: torch.Generator, relu: bool = False) -> Tensor: ...


class Space(NamedTuple):
    """Where the Gaussians live.

    size: d; place: (model, inputs (B, *input_shape)) -> (B, d); learns: model -> the parameters that learn on draws; answer: (such
    parameters, draws (B, d)) -> logits (B, C); merge: (model, such parameters) -> the model with them.
    """

    size: int
    place: Callable[[Tree, Tensor], Tensor]
    learns: Callable[[Tree], Tree]
    answer: Callable[[Tree, Tensor], Tensor]
    merge: Callable[[Tree, Tree], Tree]


def features(task: Task) -> Space:
    """Return the space of penultimate features, on which the last layer learns."""

    def merge(model: Tree, layer: Tree) -> Tree:
        return {**model, **{n: layer[n.rpartition(".")[2]] for n in task.classifier_names}}

    return Space(task.feature_size, task.features, task.classifier, task.classify, merge)


def inputs(task: Task) -> Space:
    """Return the space of inputs, flattened, on which the whole model learns."""

    def answer(model: Tree, z: Tensor) -> Tensor:
        return task.apply(model, z.reshape(-1, *task.input_shape))

    size = math.prod(task.input_shape)
    return Space(size, lambda model, x: x.flatten(1), lambda model: model, answer, lambda model, learnt: learnt)


def check(config: Config) -> list[str]:
    """Return what `Method.check` says of features: with unequal LoRA ranks clients would take them of different models."""
    if not ranks.unequal(config):
        return []
    found, name = getattr(config.adapter, "rank", None), config.method.name
    why = "features of clients of different ranks are of different models"
    return [f"adapter.rank: {found} found, method.name: {name} allows one: {why}"]


def sums_visit(task: Task, space: Space, covariance: Covariance, least: int = 1) -> Visit:
    """Return a forward-only visit over the train split that sends, of its inputs' places z under the shared model and per class, `rows`
    (C,), `sums` of z (C, d) and `squares`: of z * z (C, d), or for covariances that are not diagonal of z z^T (C, d, d).

    least: classes of which the client holds fewer rows are left out. The model is in eval mode; padding counts nothing.
    """

    def begin(client: ClientContext) -> Tree:
        def zeros(*axes: int) -> Tensor:
            return torch.zeros(task.classes, *axes, dtype=task.dtype, device=task.device)

        d, model = space.size, client.shared.get("model", {})
        squares = zeros(d) if covariance == "diag" else zeros(d, d)
        return {"model": model, "rows": zeros(), "sums": zeros(d), "squares": squares}

    def step(carry: Tree, batch: Tree, key: Tensor) -> Tree:
        z = space.place(carry["model"], batch["x"]).to(task.dtype)
        of_class = F.one_hot(batch["y"], task.classes).to(z.dtype) * batch["w"].to(z.dtype)[:, None]  # (B, C)
        squares = of_class.T @ (z * z) if covariance == "diag" else (of_class.T[:, :, None] * z).mT @ z
        return {
            **carry,
            "rows": carry["rows"] + of_class.sum(0),
            "sums": carry["sums"] + of_class.T @ z,
            "squares": carry["squares"] + squares,
        }

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        kept = (carry["rows"] >= least).to(carry["rows"].dtype)
        parts = {n: carry[n] for n in PARTS}
        return {n: p * kept.reshape(-1, *[1] * (p.dim() - 1)) for n, p in parts.items()}, client.own

    return Visit(begin, [Phase(once("train"), step, counts=False)], end)


def cost(part: str, sent: Tree) -> int:
    """Return the bytes on the wire of a part of `sums_visit`, or any other: of a symmetric matrix a half and the diagonal."""
    sizes = tree.nbytes(sent)
    if part != "squares" or (squares := tree.values(sent)[0]).dim() < 4:  # (k, C, d)
        return sizes
    d = squares.shape[-1]
    return sizes * (d + 1) // (2 * d)


def moments(counts: Tensor, sums: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return means (C, d) and unbiased covariances, (C, d) or (C, d, d), from sums over rows: s / n and (Q - s s^T / n) / (n - 1).

    Zeros where a class has no row, and a covariance of zeros where it has one. In float64: the difference loses digits.
    """
    n, s, q = counts.double(), sums.double(), squares.double()
    means = s / n.clamp(min=1)[:, None]
    n = n.reshape(-1, *[1] * (q.dim() - 1))
    outer = means * s if q.dim() == 2 else means[:, :, None] * s[:, None, :]
    return means, torch.where(n > 1, (q - outer) / (n - 1).clamp(min=1), torch.zeros_like(q))


def gaussians(sums: Sequence[Tensor], covariance: Covariance = "diag", shrink: float = 0.0) -> Gaussians:
    """Return class Gaussians from the parts of `sums_visit` in the order of PARTS, added over clients.

    covariance: of each class its diagonal, of each class whole, or one for all classes (the mean of S_c weighted by n_c - 1);
    shrink: a in (1 - a) S + a tr(S) / d I. Negative eigenvalues, which are of rounding, count as zero.
    """
    counts = sums[0]
    means, s = moments(*sums)
    if covariance == "shared":
        free = (counts.double() - 1).clamp(min=0)
        s = (torch.tensordot(free, s, dims=([0], [0])) / free.sum().clamp(min=1)).expand_as(s)
    if s.dim() == 2:
        s = (1 - shrink) * s + shrink * s.mean(1, keepdim=True)
        return Gaussians(counts, means, s.clamp(min=0).sqrt())
    level = s.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    s = (1 - shrink) * s + shrink * level * torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
    values, vectors = torch.linalg.eigh(s)
    # the symmetric root: eigenvectors alone are unique only up to sign and rotation, and would magnify rounding
    return Gaussians(counts, means, vectors * values.clamp(min=0).sqrt()[:, None, :] @ vectors.mT)


def draw(of: Gaussians, y: Tensor, rng: torch.Generator, relu: bool = False) -> Tensor:
    """Draw a place (d,) of each label's class, (B, d); relu: below zero there is nothing."""
    noise = torch.randn(len(y), of.means.shape[1], generator=rng, dtype=of.means.dtype)
    factors = of.factors[y]
    spread = factors * noise if factors.dim() == 2 else (factors @ noise[:, :, None])[:, :, 0]
    z = of.means[y] + spread
    return z.clamp(min=0) if relu else z


def mismatch(z: Tensor, y: Tensor, of: Gaussians) -> Tensor:
    """Return how far features z (B, d) of labels y (B,) are from class Gaussians with diagonal factors, 0-d (ours).

    With v the mean over the rows of their classes' variances, plus a hundredth of its mean over dimensions for features that never
    move, and r = z - m_y: the mean over dimensions of
    sum_c (B_c / B) (mean over the class's rows of r)^2 / v + ((mean over all rows of r^2) - v)^2 / v^2. A class without rows on
    either side does not count.
    """
    counted = (of.counts > 0)[y].to(z.dtype)[:, None]
    r = (z - of.means[y].to(z.dtype)) * counted
    n = counted.sum().clamp(min=1)
    v = (of.factors[y].to(z.dtype).square() * counted).sum(0) / n
    v = v + 0.01 * v.mean()
    one_hot = (y[:, None] == torch.arange(len(of.counts), device=y.device)).to(z.dtype)  # (B, C)
    held = one_hot.sum(0)[:, None]
    off_centre = ((one_hot.T @ r).square() / held.clamp(min=1)).sum(0) / n
    return (off_centre / v + ((r.square().sum(0) / n - v) / v).square()).mean()


def refit(
    task: Task,
    space: Space,
    model: Tree,
    of: Source,
    rng: torch.Generator,
    *,
    steps: int,
    lr: float,
    batch: int,
    rho: float = 0.0,
    relu: bool = False,
    loss: Callable[[Tree, Tensor, Tensor], Tensor] | None = None,
    counts: Tensor | None = None,
) -> tuple[Tree, float | None]:
    """Return the model after SGD on draws of what learns in a space, and the last step's loss.

    Labels are drawn over the classes that have rows by their counts to the power rho: 0 uniformly; counts: (C,) in the place of the
    source's. loss: loss(what learns, z (B, d),
    y (B,)); default cross-entropy without the logits of classes that have no row, which it would push down without end: their
    rows of the last layer stay as they are. What does not learn stays to the bit.
    """
    counts = of.counts if counts is None else counts
    seen = (counts > 0).nonzero()[:, 0]
    if not steps or not len(seen):
        return model, None
    shares = counts[seen].double() ** rho
    place = torch.zeros(len(counts), dtype=torch.int64).index_put((seen,), torch.arange(len(seen)))
    learnt, last = space.learns(model), 0.0

    def cross_entropy(learnt: Tree, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(space.answer(learnt, z)[:, seen], place[y])

    step = torch.func.grad_and_value(loss or cross_entropy)
    for _ in range(steps):
        y = seen[torch.multinomial(shares, batch, replacement=True, generator=rng)]
        grads, value = step(learnt, of.draw(y, rng, relu).to(task.dtype), y)
        learnt, last = tree.add(learnt, grads, -lr), float(value)
    return space.merge(model, learnt), last
