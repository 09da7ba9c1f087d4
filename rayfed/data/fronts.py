"""Multi-objective problems as data: a client is a problem, a row a preference at which its front is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, unknown_options
from rayfed.errors import nearest
from rayfed.fronts import PROBLEMS, SUITES, preferences

if TYPE_CHECKING:
    from rayfed.config.schema import Named

OPTIONS = ("preferences", "together")


def check(spec: Named) -> list[str]:
    """Return what is wrong with the suite and its options."""
    suite, known = spec.name.partition(":")[2], [f"pareto:{k}" for k in SUITES]
    if suite not in SUITES:
        return [f"task.data: {spec.name!r} is unknown{nearest(spec.name, known)}; known: {', '.join(known)}"]
    found, o = unknown_options(spec, OPTIONS), spec.options
    many = o.get("preferences", 30)
    if isinstance(many, bool) or not isinstance(many, int) or many < 2:
        found.append(f"task.data.preferences: {many!r} found, allowed: a whole number >= 2")
    if not isinstance(o.get("together", False), bool):
        found.append(f"task.data.together: {o['together']!r} found, allowed: true, false")
    return found


def load(spec: Named, seed: int) -> Dataset:
    """Return a suite of problems: y is a row's problem, x its preference (m,), and its client the problem's name, with `together` one
    client for all. Of each problem there are `preferences` training rows, drawn evenly from the simplex, which are as many as a step
    takes (tasks of kind pareto draw them anew), and test rows at the preferences of `rayfed.fronts.preferences`."""
    names = SUITES[spec.name.partition(":")[2]]
    many, together = int(spec.options.get("preferences", 30)), bool(spec.options.get("together", False))
    m = len(PROBLEMS[names[0]].nadir)
    judged = preferences(m)
    rng = keys.numpy(keys.key(seed, 0, -1, spec.name))

    def part(each: list[np.ndarray], split: str) -> Part:
        x, y = np.concatenate(each), np.repeat(np.arange(len(names)), [len(e) for e in each])
        client = np.full(len(y), "all") if together else np.array(names)[y]
        return Part(x.astype(np.float32), y, client, None, np.full(len(y), split))

    train = part([rng.dirichlet(np.ones(m), many) for _ in names], "train")
    return Dataset(spec.name, train, part([judged] * len(names), "test"), len(names), names, "pareto")
