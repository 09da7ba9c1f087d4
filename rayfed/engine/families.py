"""The tasks of a run's families: one for each, and what all of them have in common, which server programs are given."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rayfed import task as tasks
from rayfed.errors import ConfigError, FailsAgain
from rayfed.models import families

if TYPE_CHECKING:
    import numpy as np

    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree


def build(config: Config, federation: Federation, device: str, start: Any) -> Task:
    """Build a run's task; where clients have several models, what `joined` gives."""
    kind = tasks.of(federation.task)
    made = {n: kind(c, federation, device, start) for n, c in families.configs(config).items()}
    family = families.drawn(config, federation.population, federation.clients)
    if family is None:
        return made[""]
    for name, task in made.items():
        task.family_name = name
    return joined(made, family)


def joined(found: Mapping[str, Task], family: np.ndarray) -> Task:
    """Return the task that stands for all families: of the parameters those that are of one name and shape in all of them, with the
    first family's values, and its last layer where all have one of that shape; no network, so that what asks for an answer
    raises FailsAgain.

    family: (N,) the number of each client's.
    """
    first, made = next(iter(found.values())), copy.copy(next(iter(found.values())))
    common = alike(found)

    def cut(params: Tree) -> dict[str, Any]:
        return {n: p for n, p in params.items() if n in common}

    def no_network(*args: Any) -> Any:
        known = ", ".join(found)
        raise FailsAgain(f"task.model has families ({known}), and no one network: `task.families` has the task of each")

    made.families, made.family = dict(found), family
    made.params_like, made.head = cut(first.params_like), tuple(n for n in first.head if n in common)
    made.init_params = lambda key: cut(first.init_params(key))  # type: ignore[method-assign]
    made.fresh_params = lambda key: cut(first.fresh_params(key))  # type: ignore[method-assign]
    made._forward = no_network  # type: ignore[method-assign, assignment]
    made.buffers = tuple(dict.fromkeys(n for t in found.values() for n in t.buffers))
    made.counters = tuple(dict.fromkeys(n for t in found.values() for n in t.counters))
    return made


def alike(found: Mapping[str, Task]) -> set[str]:
    """Return the first family's names of parameters that are of one name and shape in all, and of its last layer where all have one of
    that shape."""
    first, *others = found.values()
    shapes = [{n: tuple(p.shape) for n, p in t.params_like.items()} for t in found.values()]
    common = {n for n, s in shapes[0].items() if all(more.get(n) == s for more in shapes[1:])}
    try:
        last = [{n: p.shape for n, p in t.classifier(t.params_like).items()} for t in (first, *others)]
    except ConfigError:  # one of them does not end in such a layer
        return common
    return common | set(first.classifier_names) if all(s == last[0] for s in last) else common
