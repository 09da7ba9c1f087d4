"""Local training: most visits are `sgd_visit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayfed import optimizers, schedules, tree
from rayfed.errors import FailsAgain
from rayfed.lazy import torch
from rayfed.privacy import per_example
from rayfed.tree import Tree
from rayfed.visits import Batch, ClientContext, Info, Over, Phase, Visit, epochs, steps

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Local

Loss = Callable[[Tree, Batch, Any], Any]  # (params, batch, key) -> one number per example, (B,)
# (params, carry, batch, key) -> (what the optimizer takes for the gradient, changed entries of the carry)
Formula = Callable[[Tree, Tree, Batch, Any], tuple[Tree, Tree]]

_written: list[dict[str, Tensor]] = []  # what training forward passes wrote, for each `grad` and own formula that runs


def grad(f: Callable[..., Tensor]) -> Callable[..., tuple[Tree, Tree]]:
    """`torch.func.grad` of a loss of a network whose training forward pass writes buffers (running statistics, counters).

    f: (params, ...) -> 0-d loss. The result is called alike and returns (gradients, {buffer's name: its new value}), the latter
    of the first training forward pass within f, and empty where it writes none.
    """

    def value(params: Tree, *args: Any) -> tuple[Tensor, Tree]:
        _written.append({})
        try:
            return f(params, *args), _written[-1]
        finally:
            _written.pop()

    def made(params: Tree, *args: Any) -> tuple[Tree, Tree]:
        grads, written = torch.func.grad(value, has_aux=True)(params, *args)
        note_written(written)  # for what is around it
        return grads, written

    return made


_gradients = grad  # the name that `sgd_visit`'s argument leaves it


def note_written(buffers: Mapping[str, Tensor]) -> None:
    """Give the innermost `grad` or own formula what a training forward pass wrote, the first one's; tasks call this."""
    if _written and not _written[-1]:
        _written[-1].update(buffers)


def work(local: Local, split: str = "train", batches: int = 1) -> Over:
    """Return the local work that the config asks for: `local.epochs`, or `local.steps`."""
    return steps(local.steps, split, batches) if local.steps else epochs(local.epochs or 1, split, batches)


def mean_loss(loss: Loss, params: Tree, batch: Batch, key: Any) -> Tensor:
    """Return the mean loss over the real examples of a padded batch, 0-d."""
    w = batch["w"]
    return (loss(params, batch, key) * w).sum() / w.sum().clamp(min=1)


def gradient(loss: Loss, params: Tree, batch: Batch, key: Any) -> Tree:
    """Return the gradient of `mean_loss` at params, {name: tensor}: what an own formula (`sgd_visit`'s `grad`) is made of."""
    return grad(lambda p: mean_loss(loss, p, batch, key))(params)[0]


def clipped(grads: Tree, most: float, moves: Callable[[str], bool] | None = None) -> Tree:
    """Return gradients scaled down to a norm of at most `most` over all entries, as torch.nn.utils.clip_grad_norm_ does; moves: which
    names count, all by default."""
    counted = {n: g for n, g in grads.items() if moves is None or moves(n)}
    return tree.scale(grads, (most / (tree.norm(counted) + 1e-6)).clamp(max=1.0))


def clipped_apart(local: Local, private: Callable[[str], bool]) -> tuple[Local, Callable[[Tree, Tree], Tree] | None]:
    """Return `local` without its clipping, and a hook that does it, for `sgd_visit`: private entries and all others each by themselves,
    so that those that stay with a client change nothing of what it sends."""
    most = local.clip
    if most is None:
        return local, None

    def hook(grads: Tree, carry: Tree) -> Tree:
        sides = [clipped({n: g for n, g in grads.items() if private(n) == side}, most) for side in (False, True)]
        return {n: sides[private(n)][n] for n in grads}

    return local.model_copy(update={"clip": None}), hook


def _by_formula(formula: Formula, params: Tree, carry: Tree, batch: Batch, key: Any) -> tuple[Tree, Tree, Tree]:
    """Return (gradients, changed entries of the carry, what its first training forward pass wrote)."""
    _written.append({})
    try:
        grads, changes = formula(params, carry, batch, key)
        return grads, changes, _written[-1]
    finally:
        _written.pop()


def sgd_visit(
    loss: Loss,
    local: Local,
    *,
    train: str = "model",
    start: Callable[[ClientContext], Tree] | None = None,
    grad: Formula | None = None,
    hook: Callable[[Tree, Tree], Tree] | None = None,
    after: Callable[[Tree, Tree], Tree] | None = None,
    end: Callable[[ClientContext, Tree], tuple[Tree, Tree]] | None = None,
    phases: Sequence[tuple[Over, Callable[[str], bool] | None]] | None = None,
    before: Sequence[Phase] = (),
    objective: Callable[[Tree, Tree, Batch, Any], Any] | None = None,
    vectorize: bool | str = True,
    lr: float | Callable[[Info, Tree], Tensor] | None = None,
) -> Visit:
    """Return a visit that trains carry[`train`] by minibatches with the config's optimizer: the visit of nine methods in ten.

    Arguments:
        loss: loss(params, batch, key) -> (B,), one number per example; mostly `task.loss`.
        local: optimizer, its rate, clipping and the local work, mostly `self.local`.
        train: the entry of the carry that is trained, {name: tensor}.
        start: start(client) -> the first carry; default {train: client.shared["model"]}.
        grad: grad(params, carry, batch, key) -> (gradients, changes) in place of the loss's gradient: what the optimizer is given, made
            of `rayfed.training.gradient`s, and the entries of the carry that a step changes, mostly {}. Where a phase has
            `batches=2`, `batch` is a tuple (Per-FedAvg, FedSpeed, FedAMD).
        hook: hook(gradient, carry) -> gradient, for what bends it (FedProx, SCAFFOLD); it is given the clipped one.
        after: after(params, carry) -> params, the parameters after each step: a projection, a mask.
        end: end(client, carry) -> (parts sent, new state); default {"delta": trained - client.shared["model"]}, the state as it was.
        phases: pairs (over, which parameter names move, None for all) where not all parameters train all the time (FedRep).
        before: phases that come first (IFCA's choice).
        objective: objective(params, carry, batch, key) -> (B,) in place of `loss` where it needs what is carried (FedGen).
        vectorize: as in `Visit`.
        lr: a learning rate in place of the round's: a number for all (fine-tuning), or lr(info, mine) -> 0-d tensor, the client's own
            from what it was sent alone. `client.info` still has the round's.

    The optimizer's state is part of the carry, fresh in every visit; `client.info.steps` and `sum_lr` in `end` count its steps.

    Example: one step of rate 1/2 on (w - x)^2 / 2, by hand.

        >>> from types import SimpleNamespace
        >>> from rayfed.config.schema import Local
        >>> made = sgd_visit(lambda params, batch, key: (params["w"] - batch["x"]) ** 2 / 2, Local())
        >>> info = SimpleNamespace(lr=torch.tensor(0.5), ahead=torch.tensor(1))
        >>> client = ClientContext(info, shared={"model": {"w": torch.zeros(())}}, mine={}, own={})
        >>> (phase,) = made.phases
        >>> carry = phase.enter(client, made.begin(client))
        >>> carry = phase.step(carry, {"x": torch.tensor([1.0, 3.0]), "w": torch.ones(2)}, key=torch.tensor(7))
        >>> made.end(client, carry)
        ({'delta': {'w': tensor(1.)}}, {})
    """
    opt, slope = optimizers.make(local.optimizer), _slope(loss, local, train, grad, objective)

    def begin(client: ClientContext) -> Tree:
        return dict(start(client)) if start else {train: client.shared["model"]}

    def enter(client: ClientContext, carry: Tree) -> Tree:
        info = client.info
        first = info.lr if lr is None else lr(info, client.mine) if callable(lr) else torch.full_like(info.lr, lr)
        rate = schedules.start_rate(local, first, info.ahead)
        return {**carry, "opt": opt.init(carry[train]), **rate}

    def trainer(moves: Callable[[str], bool] | None) -> Callable[[Tree, Batch, Tensor], Tree]:
        return _step(slope, opt, local.clip, train, moves, hook, after)

    def default_end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        return {"delta": tree.sub(carry[train], client.shared["model"])}, client.own

    falls = local.schedule.within == "linear"
    pieces: Sequence[tuple[Over, Any]] = phases or [(work(local), None)]
    training = [Phase(over, trainer(moves), enter, falls=falls) for over, moves in pieces]
    return Visit(begin, [*before, *training], end or default_end, vectorize, lambda carry: carry[train])


def _slope(
    loss: Loss,
    local: Local,
    train: str,
    grad: Formula | None,
    objective: Callable[[Tree, Tree, Batch, Any], Any] | None,
) -> Callable[[Tree, Batch, Any], tuple[Tree, Tree, Tree]]:
    """Return (carry, batch, key) -> (gradients, changed entries of the carry, buffers written); arguments as in `sgd_visit`."""
    if grad is not None and local.privacy is not None:
        raise FailsAgain(
            "local.privacy found, and this visit has a formula of its own in the place of the loss's gradient"
        )
    if grad is not None and objective is not None:
        raise TypeError(
            "sgd_visit: grad and objective are both given, and each stands for the loss's gradient; give one"
        )

    def slope(carry: Tree, batch: Batch, key: Any) -> tuple[Tree, Tree, Tree]:
        if grad:
            return _by_formula(grad, carry[train], carry, batch, key)
        of = (lambda p, b, k: objective(p, carry, b, k)) if objective else loss
        if local.privacy is not None:
            return per_example.gradient(of, carry[train], batch, key, local.privacy, local.batch_size), {}, {}
        grads, written = _gradients(lambda p: mean_loss(of, p, batch, key))(carry[train])
        return grads, {}, written

    return slope


def _step(
    slope: Callable[[Tree, Batch, Any], tuple[Tree, Tree, Tree]],
    opt: optimizers.Optimizer,
    most: float | None,
    train: str,
    moves: Callable[[str], bool] | None,
    hook: Callable[[Tree, Tree], Tree] | None,
    after: Callable[[Tree, Tree], Tree] | None,
) -> Callable[[Tree, Batch, Any], Tree]:
    """Return a training step. slope: what `_slope` returns; most: the norm that gradients are clipped to; moves: which parameters do;
    others as in `sgd_visit`."""

    def step(carry: Tree, batch: Batch, key: Any) -> Tree:
        grads, changes, written = slope(carry, batch, key)
        if most is not None:
            grads = clipped(grads, most, moves)
        if hook:
            grads = hook(grads, carry)
        params, state = opt.update(grads, carry["opt"], carry[train], carry["lr"])
        if moves:
            params = {n: params[n] if moves(n) else p for n, p in carry[train].items()}
        if after:
            params = after(params, carry)
        params = {**params, **written}  # statistics follow the data, never a gradient
        return {**carry, **changes, train: params, "opt": state, **schedules.advance_rate(carry)}

    return step
