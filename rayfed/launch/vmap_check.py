"""Whether the visits of a user's method run under `vmap`, tried on made-up parts before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from rayfed import methods, tree, visits
from rayfed.config.own_errors import contained, describe
from rayfed.errors import ConfigError
from rayfed.execute.vmap import AXES, vectorized
from rayfed.visits import ClientContext, Info, Visit

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.method import Method
    from rayfed.task import Task
    from rayfed.tree import Tree

CLIENTS = 2
KEYS = torch.arange(CLIENTS)


def problems(config: Config, task: Task, batch: Tree) -> list[str]:
    """Return a sentence for each visit that runs for one client at a time, but not under `vmap`, and does not say so.

    batch: some rows of the data. What the server would send is made up, of the declared shapes: a visit that cannot run on that at all is
    not judged.
    """
    if task.vectorize is not True:
        return []
    try:
        cls = methods.get(config.method.name)
    except ConfigError:  # of a session, whose text this process does not have
        return []
    method = cls(cls.Settings(**config.method.options), config)
    found = []
    for name, make in visits.without_arguments(method).items():
        try:
            with contained(), torch.no_grad():
                visit, clients = make(task), _clients(config, method, task)
                one = ClientContext(*(t if n == "shared" else tree.pick(t, 0) for n, t in clients._asdict().items()))
                _execute(
                    visit, one._replace(info=Info(*(f[0] for f in clients.info))), batch, KEYS[0], lambda f, axes: f
                )
        except Exception:
            continue
        if isinstance(visit.vectorize, str):
            continue
        try:
            with contained(), torch.no_grad():
                _execute(visit, clients, tree.stack([batch] * CLIENTS), KEYS, vectorized)
        except Exception as error:
            found.append(
                f"resources.executor: {config.resources.executor} found, but visit {name!r} of {cls.__name__} does not run under "
                f"it: {describe(error)}. "
                "Choose auto or loop, or let the visit say why (vectorize=...)"
            )
    return found


def _execute(visit: Visit, client: ClientContext, batch: Tree, key: Any, wrap: Callable[..., Any]) -> None:
    """Execute a visit with one step of each phase; wrap(function, axes): what is called in a function's place."""
    carry = wrap(visit.begin, (AXES,))(client)
    for phase in visit.phases:
        if phase.enter:
            carry = wrap(phase.enter, (AXES, 0))(client, carry)
        given = (batch,) * phase.over.batches if phase.over.batches > 1 else batch
        carry = wrap(phase.step, 0)(carry, {} if phase.over.kind == "nothing" else given, key)
    wrap(visit.end, (AXES, 0))(client, carry)


def _clients(config: Config, method: Method, task: Task) -> ClientContext:
    """Return what clients of round 1 hold, leaves (CLIENTS, ...) but for what is shared."""
    state = method.init(task, 0)
    down = {n: state[n] if n in state else part.shape.zeros(task) for n, part in method.wire.down.items()}
    number = torch.ones((), dtype=torch.int64)
    rate = torch.tensor(config.local.optimizer.lr, dtype=task.dtype)
    info = Info(
        client=number, examples=number, counts=torch.ones(task.classes, dtype=task.dtype), steps=number, ahead=number, lr=rate,
        sum_lr=rate, round=number, rounds=number, secret=number, rank=number,
    )  # fmt: skip
    own = tree.stack([method.own_init(task, c, 0) for c in range(CLIENTS)])
    several = Info(*(torch.stack([f] * CLIENTS) for f in info))
    return ClientContext(several, down, tree.stack([down] * CLIENTS), own)
