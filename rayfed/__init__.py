"""rayfed: a Ray-native experiment engine for federated learning.

    import rayfed
    run = rayfed.run("quickstart")        # or a file, or a dict
    run.metrics()                          # one row per round, a pyarrow Table
    run.plot()                             # in a notebook, run itself shows a table and its curves

To write a method: `Method`, `visit`, `sgd_visit`, `Part`, `Wire`, `mean`, `tree` (docs/writing-a-method.md).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayfed import partition as partition
    from rayfed import report as report
    from rayfed import tree as tree
    from rayfed.api import Callback as Callback
    from rayfed.api import Run as Run
    from rayfed.api import Running as Running
    from rayfed.api import Study as Study
    from rayfed.api import Sweep as Sweep
    from rayfed.api import compare as compare
    from rayfed.api import load as load
    from rayfed.api import resume as resume
    from rayfed.api import run as run
    from rayfed.api import runs as runs
    from rayfed.api import start as start
    from rayfed.api import sweep as sweep
    from rayfed.config.schema import Need as Need
    from rayfed.fed import Fed as Fed
    from rayfed.fed import Replies as Replies
    from rayfed.fold import mean as mean
    from rayfed.fold import total as total
    from rayfed.method import Method as Method
    from rayfed.method import MethodSettings as MethodSettings
    from rayfed.metrics import Measure as Measure
    from rayfed.task import Task as Task
    from rayfed.task import TaskKind as TaskKind
    from rayfed.task import TaskSettings as TaskSettings
    from rayfed.training import sgd_visit as sgd_visit
    from rayfed.tree import Tree as Tree
    from rayfed.visits import ClientContext as ClientContext
    from rayfed.visits import Phase as Phase
    from rayfed.visits import Visit as Visit
    from rayfed.visits import measure as measure
    from rayfed.visits import model_of as model_of
    from rayfed.visits import visit as visit
    from rayfed.wire import ANY as ANY
    from rayfed.wire import CLASSES as CLASSES
    from rayfed.wire import PARAMS as PARAMS
    from rayfed.wire import SCALAR as SCALAR
    from rayfed.wire import Part as Part
    from rayfed.wire import Wire as Wire
    from rayfed.wire import params_but as params_but
    from rayfed.wire import params_of as params_of
    from rayfed.wire import stack as stack
    from rayfed.wire import tensor as tensor

_HOME = {
    **dict.fromkeys(
        ("Callback", "Run", "Running", "Study", "Sweep", "compare", "load", "resume", "run", "runs", "start", "sweep"),
        "api",
    ),
    **dict.fromkeys(("Need",), "config.schema"),
    **dict.fromkeys(("Fed", "Replies"), "fed"),
    **dict.fromkeys(("mean", "total"), "fold"),
    **dict.fromkeys(("Method", "MethodSettings"), "method"),
    **dict.fromkeys(("Measure",), "metrics"),
    **dict.fromkeys(("Task", "TaskKind", "TaskSettings"), "task"),
    **dict.fromkeys(("sgd_visit",), "training"),
    **dict.fromkeys(("Tree",), "tree"),
    **dict.fromkeys(("ClientContext", "Phase", "Visit", "measure", "model_of", "visit"), "visits"),
    **dict.fromkeys(
        ("ANY", "CLASSES", "PARAMS", "SCALAR", "Part", "Wire", "params_but", "params_of", "stack", "tensor"), "wire"
    ),
}

__all__ = [
    "ANY",
    "CLASSES",
    "PARAMS",
    "SCALAR",
    "Callback",
    "ClientContext",
    "Fed",
    "Measure",
    "Method",
    "MethodSettings",
    "Need",
    "Part",
    "Phase",
    "Replies",
    "Run",
    "Running",
    "Study",
    "Sweep",
    "Task",
    "TaskKind",
    "TaskSettings",
    "Tree",
    "Visit",
    "Wire",
    "compare",
    "load",
    "mean",
    "measure",
    "model_of",
    "params_but",
    "params_of",
    "partition",
    "report",
    "resume",
    "run",
    "runs",
    "sgd_visit",
    "stack",
    "start",
    "sweep",
    "tensor",
    "total",
    "tree",
    "visit",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Names are fetched when used: `import rayfed` must cost nothing in a process that only reads configs.
    if name in ("partition", "report", "tree"):  # the first two can be called (rayfed.lazy)
        return importlib.import_module(f"rayfed.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"rayfed.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rayfed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__all__", "__doc__", "__version__"])
