"""`local.buffers: private`: the buffers that training writes stay at the client, under every method.

A visit gets each model with the client's own buffers in it, and sends updates that are zero there, so the server's keep their
initial values. The client state has one more part, `buffers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rayfed.lazy import torch
from rayfed.visits import ClientContext, Visit
from rayfed.wire import Part, params_of

if TYPE_CHECKING:
    from rayfed.method import Method
    from rayfed.task import Task
    from rayfed.tree import Tree

PART = "buffers"


def keep(method: Method, task: Task) -> None:
    """Add the part `buffers` to a method's client state, with the initial model's values."""
    kept = Part(params_of("buffers"), private=True, note="local.buffers: private")
    own_init = method.own_init
    method.wire = method.wire._replace(keep={**method.wire.keep, PART: kept})  # type: ignore[misc]

    def with_buffers(task: Task, client: int, key: int) -> Tree:
        return {**own_init(task, client, key), PART: {n: task.initial[n] for n in task.buffers}}

    method.own_init = with_buffers  # type: ignore[method-assign]


def at_client(inner: Visit, method: Method, task: Task) -> Visit:
    """Return a visit of clients that hold their own buffers."""
    names = task.buffers
    updates = {n for n, part in method.wire.up.items() if part.update}

    def held(client: ClientContext) -> ClientContext:
        own = dict(client.own)
        buffers = own.pop(PART, {})  # a family's model may have none
        return ClientContext(client.info, *(_put(t, buffers) for t in (client.shared, client.mine, own)))

    def begin(client: ClientContext) -> Tree:
        return inner.begin(held(client))

    def entering(enter: Any) -> Any:
        return lambda client, carry: enter(held(client), carry)

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        parts, after = inner.end(held(client), carry)
        trained = inner.local(carry) if inner.local is not None else {}
        after = {**after, PART: {n: trained[n] if n in trained else client.own[PART][n] for n in names}}
        return {n: _zero(p, names) if n in updates else p for n, p in parts.items()}, after

    phases = [p._replace(enter=entering(p.enter) if p.enter else None) for p in inner.phases]
    return inner._replace(begin=begin, phases=phases, end=end)


def _put(t: Tree, buffers: Tree) -> Tree:
    """Return a tree with these buffers in every model in it, in stacks of models too."""
    if not isinstance(t, Mapping):
        return t
    return {
        n: buffers[n].expand_as(x) if n in buffers and not isinstance(x, Mapping) else _put(x, buffers)
        for n, x in t.items()
    }


def _zero(part: Tree, names: tuple[str, ...]) -> Tree:
    if not isinstance(part, Mapping):
        return part
    return {n: torch.zeros_like(x) if n in names else x for n, x in part.items()}


def problems(method: type[Method]) -> list[str]:
    """Return why a method cannot have it: its clients send entries of the model that are not updates, buffers among them."""
    whole = sorted(n for n, p in method.wire.up.items() if not p.update and str(p.shape) == "params")
    problem = (
        f"local.buffers: private found, but clients of {method.__name__} send whole trees of the model that are no updates "
        f"({', '.join(whole)}), their buffers with them; "
        "allowed: average, frozen"
    )
    return [problem] if whole else []
