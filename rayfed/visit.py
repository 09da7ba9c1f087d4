"""What one client does when it is asked, written for ONE client and pure in tensors.

A visit is `begin -> step per batch -> end`. The executors run it one client after another (`loop`) or for a whole
cohort at once (`vmap`); batching, padding, masking of finished clients, keys and step counts are theirs, so none of it
appears in a method. A visit that counts its client's examples:

    Visit(begin=lambda info, shared, mine, own: {"n": torch.zeros(())},
          phases=[Phase(once(), lambda carry, batch, key: {"n": carry["n"] + batch["w"].sum()})],
          end=lambda info, carry, shared, mine, own: ({"n": carry["n"]}, own))

Rules for tensors inside a visit: no `.item()`, no `if` on a tensor, no in-place writes, the carry keeps its structure. What it
calls may depend on shapes and settings alone: from the fourth call of a piece on, the same kernels are played (`execute.tuning.replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed import optimizers, tree
from rayfed.lazy import torch
from rayfed.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Local

Batch = Any  # {"x": (B, ...), "y": (B,), "w": (B,) 1 or 0 on padding}, or a tuple of such where Over.batches > 1
Loss = Callable[[Tree, Batch, Any], Any]  # (params, batch, key) -> one number per example, (B,)


class Info(NamedTuple):
    """What a visit knows of its client and its round; 0-d tensors but for `counts`.

    client: id; examples: train examples; counts: (C,) train examples per class; steps: real steps taken so far;
    ahead: real steps of the phase that `enter` begins; lr: the learning rate that the visit begins with; sum_lr: the rate
    summed over the real steps; round, rounds: from 1; secret: a key that all clients of the round share and the server
    program is not given; rank: of its LoRA adapter, 0 without one.
    """

    client: Tensor
    examples: Tensor
    counts: Tensor
    steps: Tensor
    ahead: Tensor
    lr: Tensor
    sum_lr: Tensor
    round: Tensor
    rounds: Tensor
    secret: Tensor
    rank: Tensor


@dataclass(frozen=True)
class Over:
    """What a phase runs over; made by `epochs`, `steps`, `once`, `whole`, `nothing`."""

    kind: str
    n: int = 1
    split: str = "train"
    batches: int = 1


def epochs(n: int, split: str = "train", batches: int = 1) -> Over:
    """n passes in a fresh order each; `batches` > 1 hands every step a tuple of that many consecutive batches."""
    return Over("epochs", n, split, batches)


def steps(n: int, split: str = "train", batches: int = 1) -> Over:
    """n steps over reshuffled passes."""
    return Over("steps", n, split, batches)


def once(split: str = "train") -> Over:
    """One pass in storage order, in large batches; for measuring."""
    return Over("once", 1, split)


def whole(split: str = "train") -> Over:
    """One step with all examples as one batch."""
    return Over("whole", 1, split)


def nothing(n: int) -> Over:
    """n steps without data (`batch` is {}); keys only."""
    return Over("nothing", n, "")


class Phase(NamedTuple):
    """`step(carry, batch, key) -> carry` for each batch of `over`; `enter` may reshape the carry once before it.

    counts: whether its steps are training, so that `info.steps` and `info.sum_lr` grow; false where it only measures.
    falls: whether the rate falls from info.lr to zero over its steps (`optim.first`), which `info.sum_lr` then adds up.
    """

    over: Over
    step: Callable[[Tree, Batch, Tensor], Tree]
    enter: Callable[[Info, Tree, Tree, Tree, Tree], Tree] | None = None
    counts: bool = True
    falls: bool = False

    def passed(self, info: Info, done: Tensor) -> Info:
        """`info` after its `done` real steps."""
        if not self.counts:
            return info
        # lr (T + T-1 + ... + 1) / T = lr (T + 1) / 2
        rates = (done + done.clamp(max=1)) / 2 if self.falls else done
        return info._replace(steps=info.steps + done, sum_lr=info.sum_lr + rates * info.lr)


class Visit(NamedTuple):
    """begin(info, shared, mine, own) -> carry; phases; end(info, carry, shared, mine, own) -> (parts sent, new own).

    `vectorize`: True, or the reason why `vmap` cannot run it. `local`: carry -> the locally trained parameters, if the
    visit trains a model (the engine then scores it as `local`).
    """

    begin: Callable[[Info, Tree, Tree, Tree], Tree]
    phases: Sequence[Phase]
    end: Callable[[Info, Tree, Tree, Tree, Tree], tuple[Tree, Tree]]
    vectorize: bool | str = True
    local: Callable[[Tree], Tree] | None = None


def work(local: Local, split: str = "train", batches: int = 1) -> Over:
    """The local work that the config asks for: `local.epochs`, or `local.steps`."""
    return steps(local.steps, split, batches) if local.steps else epochs(local.epochs or 1, split, batches)


def mean_loss(loss: Loss, params: Tree, batch: Batch, key: Any) -> Tensor:
    """Mean over the real examples of a padded batch, 0-d."""
    w = batch["w"]
    return (loss(params, batch, key) * w).sum() / w.sum().clamp(min=1)


def sgd_visit(
    loss: Loss,
    local: Local,
    *,
    train: str = "model",
    start: Callable[[Info, Tree, Tree, Tree], Tree] | None = None,
    hook: Callable[[Tree, Tree], Tree] | None = None,
    end: Callable[[Info, Tree, Tree, Tree, Tree], tuple[Tree, Tree]] | None = None,
    phases: Sequence[tuple[Over, Callable[[str], bool]]] | None = None,
    before: Sequence[Phase] = (),
    objective: Callable[[Tree, Tree, Batch, Any], Any] | None = None,
    vectorize: bool | str = True,
) -> Visit:
    """Minibatch training of carry[`train`] with the config's optimizer: nine methods of ten.

    start: the first carry (default {train: shared["model"]}); hook(gradient, carry) -> gradient (FedProx, SCAFFOLD);
    end: what is sent (default {"delta": trained - shared["model"]}, own unchanged); phases: (over, which parameter
    names move) where not all parameters train all the time (FedRep); before: phases that come first (IFCA's choice);
    objective(params, carry, batch, key) -> (B,): in place of `loss` where it needs what is carried (FedGen's generator).
    The optimizer's state is part of the carry, fresh in every visit.
    """
    opt = optimizers.make(local.optimizer)

    def begin(info: Info, shared: Tree, mine: Tree, own: Tree) -> Tree:
        return dict(start(info, shared, mine, own)) if start else {train: shared["model"]}

    def enter(info: Info, carry: Tree, shared: Tree, mine: Tree, own: Tree) -> Tree:
        return {**carry, "opt": opt.init(carry[train]), **optimizers.first(local, info.lr, info.ahead)}

    def trainer(moves: Callable[[str], bool] | None) -> Callable[[Tree, Batch, Tensor], Tree]:
        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            of = (lambda p, b, k: objective(p, carry, b, k)) if objective else loss
            grads = torch.func.grad(lambda p: mean_loss(of, p, batch, key))(carry[train])
            if hook:
                grads = hook(grads, carry)
            params, state = opt.update(grads, carry["opt"], carry[train], carry["lr"])
            if moves:
                params = {n: params[n] if moves(n) else p for n, p in carry[train].items()}
            return {**carry, train: params, "opt": state, **optimizers.after(carry)}

        return step

    def default_end(info: Info, carry: Tree, shared: Tree, mine: Tree, own: Tree) -> tuple[Tree, Tree]:
        return {"delta": tree.sub(carry[train], shared["model"])}, own

    plan: Sequence[tuple[Over, Any]] = phases or [(work(local), None)]
    falls = local.schedule.within == "linear"
    training = [Phase(over, trainer(moves), enter, falls=falls) for over, moves in plan]
    return Visit(begin, [*before, *training], end or default_end, vectorize, lambda carry: carry[train])


def measure(
    fn: Callable[[Tree, Batch], Tree],
    like: Callable[[Info, Tree, Tree, Tree], Tree],
    *,
    over: Over | None = None,
    reduce: str = "mean",
    model: Callable[[Info, Tree, Tree, Tree], Tree] | None = None,
) -> Visit:
    """A visit that sends numbers about the client's data: losses of k models, class counts, prototypes, predictions.

    fn(model, batch) -> tree with leaves (B, ...), one row per example; `like(info, shared, mine, own)` gives zeros of
    the rows' shapes; the rows are summed over the real examples (reduce "sum") or averaged ("mean"), and the number of
    examples is sent beside them as `n`. `model` picks what is handed to fn (default: all of shared).
    """

    def begin(info: Info, shared: Tree, mine: Tree, own: Tree) -> Tree:
        zero = like(info, shared, mine, own)
        return {
            "sum": zero,
            "n": torch.zeros_like(tree.values(zero)[0].sum()),
            "model": model(info, shared, mine, own) if model else shared,
        }

    def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
        return {**carry, **accumulate(carry, fn(carry["model"], batch), batch["w"])}

    def end(info: Info, carry: Tree, shared: Tree, mine: Tree, own: Tree) -> tuple[Tree, Tree]:
        return {**(average(carry) if reduce == "mean" else carry["sum"]), "n": carry["n"]}, own

    return Visit(begin, [Phase(over or once(), step, counts=False)], end)


def accumulate(sums: Tree, rows: Tree, w: Tensor) -> Tree:
    """{"sum": sums + rows weighted by w, "n": n + sum of w}; rows have leaves (B, ...)."""
    return {
        "sum": tree.map(lambda s, r: s + torch.tensordot(w.to(r.dtype), r, dims=([0], [0])), sums["sum"], rows),
        "n": sums["n"] + w.sum(),
    }


def average(sums: Tree) -> Tree:
    """The mean of what `accumulate` summed; zeros where there was no example."""
    return tree.scale(sums["sum"], 1.0 / sums["n"].clamp(min=1))
