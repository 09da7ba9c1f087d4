"""A run's models as files: the folder `model/` of a run that has ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rayfed import tree
from rayfed.storage.atomic import remove
from rayfed.storage.tree_files import save_tree

if TYPE_CHECKING:
    from rayfed.method import Method
    from rayfed.task import Task
    from rayfed.tree import Tree


def save_models(where: Path, method: Method, task: Task, state: Tree) -> None:
    """Write the universal model of a server state and its experts, where the method has them, in place of what is there.

    OSError if the disk does not take it; SafetensorError where that comes from a library.
    """
    remove(where)  # libraries add to what a killed export left
    where.mkdir(exist_ok=True)
    about = {"classes": task.classes, "input_shape": list(task.input_shape)}  # to build the module again
    if method.universal:
        save_tree(where, "model", tree.to_numpy(state[method.universal]), about)
        task.publish(state[method.universal], where)
    for k, expert in (method.experts(state) or {}).items():
        save_tree(where, f"expert-{k}", tree.to_numpy(expert), about)
        task.publish(expert, where / f"expert-{k}")
