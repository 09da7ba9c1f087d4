"""A served model that each client first fine-tunes on its own training data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rayfed import sgd_visit
from rayfed.visits import epochs

if TYPE_CHECKING:
    from rayfed import ClientContext, Task, Tree, Visit
    from rayfed.config.schema import Local


def finetuned(
    task: Task,
    local: Local,
    settings: Any,
    start: Callable[[ClientContext], Tree] | None = None,
    moves: Callable[[str], bool] = lambda name: True,
) -> Visit:
    """Return the view of a model after `settings.finetune_epochs` epochs of local SGD at `settings.finetune_lr` (None: the round's).

    start: start(client) -> {"model": what is fine-tuned}, default the shared model; moves: which entries train.
    """

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        return {"model": carry["model"]}, client.own

    tuned = [(epochs(settings.finetune_epochs), moves)]
    return sgd_visit(task.loss, local, phases=tuned, start=start, end=end, lr=settings.finetune_lr)
