"""Whether a method can have families of models: whether what it sends is of one shape in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rayfed.errors import ConfigError
from rayfed.wire import Params, Shape, Stack

if TYPE_CHECKING:
    from rayfed.method import Method
    from rayfed.task import Task

ALLOWED = "allowed: a method that sends no weights of what differs (docs/families.md), or one model"


def problems(method: Method, found: Mapping[str, Task]) -> list[str]:
    """Return why a method cannot have these families, name -> its task: weights that it sends or serves are of other shapes in one of
    them, or features of another size."""
    name, several = method.config.method.name, f"task.model has families ({', '.join(found)})"
    for side in (method.wire.down, method.wire.up):
        for part, declared in side.items():
            if differs := _differs(declared.shape, found):
                return [
                    f"method.name: {name} found, {several}, and its part {part!r}, {declared.shape}, is not the same in all: "
                    f"{differs}; {ALLOWED}"
                ]
    if method.universal is not None and not method.first_family:
        return [f"method.name: {name} found, {several}, of which its one global model can be none; {ALLOWED}"]
    if not method.splits_model():
        return []
    try:
        sizes = {n: t.feature_size for n, t in found.items()}
    except ConfigError as e:
        return e.problems
    if len(set(sizes.values())) == 1:
        return []
    each = ", ".join(f"{d} in {n}" for n, d in sizes.items())
    return [
        f"method.name: {name} found, its clients send features, which are of other sizes in the families of task.model ({each} "
        "numbers); allowed: models whose last layer takes equally many"
    ]


def _differs(shape: Shape, found: Mapping[str, Task]) -> str:
    """Return where a part's tree differs between families, in words; "" where it does not."""
    while isinstance(shape, Stack):
        shape = shape.shape
    if not isinstance(shape, Params) or shape.own:
        return ""
    shapes = {n: {k: tuple(p.shape) for k, p in shape.select(t.params_like, t).items()} for n, t in found.items()}
    (first, a), *others = shapes.items()
    for other, b in others:
        entry = next((k for k in {**a, **b} if a.get(k) != b.get(k)), None)
        if entry is not None:
            one, two = ("x".join(map(str, s[entry])) or "one number" if entry in s else "absent" for s in (a, b))
            return f"{entry} is {one} in {first} and {two} in {other}"
    return ""
