"""rayfed: a Ray-native experiment engine for federated learning.

    import rayfed
    run = rayfed.run("quickstart")        # or a file, or a dict
    run.metrics()                          # one row per round, a pyarrow Table

To write a method: `rayfed.Method`, `rayfed.sgd_visit`, `rayfed.mean`, `rayfed.tree` (docs/writing-a-method.md).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayfed import tree as tree
    from rayfed.api import Run as Run
    from rayfed.api import Study as Study
    from rayfed.api import load as load
    from rayfed.api import resume as resume
    from rayfed.api import run as run
    from rayfed.fold import mean as mean
    from rayfed.fold import total as total
    from rayfed.method import Method as Method
    from rayfed.method import MethodSettings as MethodSettings
    from rayfed.method import Part as Part
    from rayfed.method import Wire as Wire
    from rayfed.visit import Phase as Phase
    from rayfed.visit import Visit as Visit
    from rayfed.visit import sgd_visit as sgd_visit

_HOME = {
    "run": "api", "resume": "api", "load": "api", "Run": "api", "Study": "api", "Method": "method",
    "MethodSettings": "method", "Part": "method", "Wire": "method", "Visit": "visit", "Phase": "visit",
    "sgd_visit": "visit", "mean": "fold", "total": "fold",
}  # fmt: skip

__all__ = [
    "Method",
    "MethodSettings",
    "Part",
    "Phase",
    "Run",
    "Study",
    "Visit",
    "Wire",
    "load",
    "mean",
    "resume",
    "run",
    "sgd_visit",
    "total",
    "tree",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Names are fetched when used: `import rayfed` must cost nothing in a process that only reads configs.
    if name == "tree":
        return importlib.import_module("rayfed.tree")
    if name in _HOME:
        return getattr(importlib.import_module(f"rayfed.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rayfed' has no attribute {name!r}")
