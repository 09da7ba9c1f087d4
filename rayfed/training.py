"""Local training: most visits are `sgd_visit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayfed import optimizers, schedules, tree
from rayfed.lazy import torch
from rayfed.tree import Tree
from rayfed.visits import Batch, ClientContext, Over, Phase, Visit, epochs, steps

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Local

Loss = Callable[[Tree, Batch, Any], Any]  # (params, batch, key) -> one number per example, (B,)


_written: list[dict[str, Tensor]] = []  # what training forward passes wrote, for each `grad` that runs


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

    return lambda params, *args: torch.func.grad(value, has_aux=True)(params, *args)


def note_written(buffers: Mapping[str, Tensor]) -> None:
    """Give the innermost `grad` what a training forward pass wrote; tasks call this."""
    if _written and not _written[-1]:
        _written[-1].update(buffers)


def work(local: Local, split: str = "train", batches: int = 1) -> Over:
    """Return the local work that the config asks for: `local.epochs`, or `local.steps`."""
    return steps(local.steps, split, batches) if local.steps else epochs(local.epochs or 1, split, batches)


def mean_loss(loss: Loss, params: Tree, batch: Batch, key: Any) -> Tensor:
    """Return the mean loss over the real examples of a padded batch, 0-d."""
    w = batch["w"]
    return (loss(params, batch, key) * w).sum() / w.sum().clamp(min=1)


def sgd_visit(
    loss: Loss,
    local: Local,
    *,
    train: str = "model",
    start: Callable[[ClientContext], Tree] | None = None,
    hook: Callable[[Tree, Tree], Tree] | None = None,
    end: Callable[[ClientContext, Tree], tuple[Tree, Tree]] | None = None,
    phases: Sequence[tuple[Over, Callable[[str], bool]]] | None = None,
    before: Sequence[Phase] = (),
    objective: Callable[[Tree, Tree, Batch, Any], Any] | None = None,
    vectorize: bool | str = True,
    lr: float | None = None,
) -> Visit:
    """Return a visit that trains carry[`train`] by minibatches with the config's optimizer: the visit of nine methods in ten.

    Arguments:
        loss: loss(params, batch, key) -> (B,), one number per example; mostly `task.loss`.
        local: optimizer, its rate and the local work, mostly `self.local`.
        train: the entry of the carry that is trained, {name: tensor}.
        start: start(client) -> the first carry; default {train: client.shared["model"]}.
        hook: hook(gradient, carry) -> gradient, for what bends it (FedProx, SCAFFOLD).
        end: end(client, carry) -> (parts sent, new state); default {"delta": trained - client.shared["model"]}, the state as it was.
        phases: pairs (over, which parameter names move) where not all parameters train all the time (FedRep).
        before: phases that come first (IFCA's choice).
        objective: objective(params, carry, batch, key) -> (B,) in place of `loss` where it needs what is carried (FedGen).
        vectorize: as in `Visit`.
        lr: a learning rate in place of the round's, for fine-tuning; `client.info` still has the round's.

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
    opt = optimizers.make(local.optimizer)

    def begin(client: ClientContext) -> Tree:
        return dict(start(client)) if start else {train: client.shared["model"]}

    def enter(client: ClientContext, carry: Tree) -> Tree:
        first = client.info.lr if lr is None else torch.full_like(client.info.lr, lr)
        rate = schedules.start_rate(local, first, client.info.ahead)
        return {**carry, "opt": opt.init(carry[train]), **rate}

    def trainer(moves: Callable[[str], bool] | None) -> Callable[[Tree, Batch, Tensor], Tree]:
        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            of = (lambda p, b, k: objective(p, carry, b, k)) if objective else loss
            grads, written = grad(lambda p: mean_loss(of, p, batch, key))(carry[train])
            if hook:
                grads = hook(grads, carry)
            params, state = opt.update(grads, carry["opt"], carry[train], carry["lr"])
            if moves:
                params = {n: params[n] if moves(n) else p for n, p in carry[train].items()}
            params = {**params, **written}  # statistics follow the data, never a gradient
            return {**carry, train: params, "opt": state, **schedules.advance_rate(carry)}

        return step

    def default_end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        return {"delta": tree.sub(carry[train], client.shared["model"])}, client.own

    falls = local.schedule.within == "linear"
    pieces: Sequence[tuple[Over, Any]] = phases or [(work(local), None)]
    training = [Phase(over, trainer(moves), enter, falls=falls) for over, moves in pieces]
    return Visit(begin, [*before, *training], end or default_end, vectorize, lambda carry: carry[train])
