"""The folder is the registry: every module here holds one method, named as the file."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING

from rayfed.config.own_errors import contained, describe
from rayfed.config.user_function import load_class
from rayfed.errors import ConfigError, nearest
from rayfed.method import Method

if TYPE_CHECKING:
    from rayfed.config.schema import Config


def names() -> list[str]:
    """Return the names of the ready methods and of those that installed packages offer (entry-point group `rayfed.methods`)."""
    return sorted(ready() | {e.name for e in entry_points(group="rayfed.methods")})


def ready() -> set[str]:
    """Return the names of the methods in this folder."""
    return {m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}


def get(name: str) -> type[Method]:
    """Return the class of a ready method, an installed package's, or `path/to/file.py:Class`.

    Raises ConfigError naming what was asked for and the nearest known name.
    """
    if ":" in name and name.partition(":")[0].endswith(".py"):
        return _from_file(name)
    if name in ready():
        return _only_method(importlib.import_module(f"{__name__}.{name}"), name)
    for entry in entry_points(group="rayfed.methods"):
        if entry.name == name:
            try:
                with contained():
                    found = entry.load()
            except Exception as e:
                raise ConfigError(
                    f"method.name: {name!r} of package {entry.dist} cannot be imported: {describe(e)}"
                ) from e
            if isinstance(found, type) and issubclass(found, Method):
                return found
            raise ConfigError(f"method.name: {name!r} of package {entry.dist} is not a rayfed.Method")
    raise ConfigError(
        f"method.name: {name!r} is unknown{nearest(name, names())}; known: {', '.join(names())}, or path/to/file.py:Class"
    )


def of(config: Config) -> Method:
    """Return the method of a config whose settings are valid."""
    cls = get(config.method.name)
    return cls(cls.Settings(**config.method.options), config)


def _only_method(module: ModuleType, name: str) -> type[Method]:
    mine = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module.__name__
    ]
    if len(mine) != 1:
        raise ConfigError(f"method.name: the file of {name!r} must define exactly one Method, it defines {len(mine)}")
    return mine[0]


def _from_file(name: str) -> type[Method]:
    found: type[Method] = load_class(name, Method, "method.name")
    return found
