"""`torch`, imported at its first use.

The process that reads the config never computes, and importing torch costs it seconds; method files therefore write
``from rayfed.lazy import torch``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        real = self.__dict__.get("_real")
        if real is None:  # kept only once it is whole: another thread may be importing it
            real = self.__dict__["_real"] = importlib.import_module(self.__name__)
        found = getattr(real, name)
        if name[0] != "_":
            self.__dict__[name] = found  # the next time without a detour
        return found


if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F
else:
    torch = _Lazy("torch")
    F = _Lazy("torch.nn.functional")


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function of `rayfed.api` that is named as this package."""
        return getattr(importlib.import_module("rayfed.api"), self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(package: str) -> None:
    """Let a package of rayfed be called as the function of `rayfed.api` of its name: `rayfed.partition(config)`.

    Packages and functions have the same words here; whichever was imported first, both stay reachable by them.
    """
    sys.modules[package].__class__ = _CallableModule
