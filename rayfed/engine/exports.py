"""A run's models as files: the folder `model/` of a run that has ended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rayfed import tree
from rayfed.models import folder
from rayfed.storage.atomic import remove
from rayfed.storage.tree_files import save_tree

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.method import Method
    from rayfed.task import Task
    from rayfed.tree import Tree

WHOLE = "hf"  # folder of a model in transformers' own format, within `model/`
COMPANIONS = (  # what a pretrained model's folder has besides weights and config.json: its tokenizer, its image processor
    "*token*.json", "vocab*", "merges*", "dict*", "*.model", "*.codes", "*.bpe", "*.spm", "preprocessor_config.json",
    "generation_config.json", "chat_template*", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


def save_models(where: Path, method: Method, task: Task, state: Tree, labels: Sequence[str] = ()) -> None:
    """Write the universal model of a server state and its experts, where the method has them, in place of what is there.

    labels: the names of the classes. A pretrained model's files are complete by themselves: its tokenizer is with them, and a whole
    model's config.json names the classes. OSError if the disk does not take it; SafetensorError where that comes from a library.
    """
    remove(where)  # libraries add to what a killed export left
    where.mkdir(exist_ok=True)
    about = {"classes": task.classes, "input_shape": list(task.input_shape), "kind": task.kind, "labels": list(labels)}
    about |= {"targets": task.targets.to_dict()} if task.targets else {}
    about |= {"modalities": [list(m) for m in task.modalities]} if task.modalities else {}
    if method.universal:
        save_tree(where, "model", tree.to_numpy(state[method.universal]), about)
        task.publish(state[method.universal], where)
        complete(where, task.config, labels)
    for k, expert in (method.experts(state) or {}).items():
        save_tree(where, f"expert-{k}", tree.to_numpy(expert), about)
        task.publish(expert, where / f"expert-{k}")
        complete(where / f"expert-{k}", task.config, labels)


def complete(where: Path, config: Config, labels: Sequence[str]) -> None:
    """Add what a pretrained model's published files lack to be used anywhere: the tokenizer's files, and names for the classes."""
    name = config.task.model.name
    if not (name.startswith("hf:") and where.is_dir()):
        return
    target = where / WHOLE if (where / WHOLE).is_dir() else where
    source = folder.locate(name)
    for file in sorted({f for pattern in COMPANIONS for f in source.glob(pattern) if f.is_file()}):
        if not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
    if (target / "config.json").is_file():
        name_classes(target / "config.json", labels)


def name_classes(file: Path, labels: Sequence[str]) -> None:
    """Write the names of the classes into transformers' config.json, if it is that of a classifier with so many."""
    about = json.loads(file.read_text(encoding="utf-8"))
    if len(labels) != len(about.get("id2label") or ()):
        return
    about["id2label"] = {str(i): label for i, label in enumerate(labels)}
    about["label2id"] = {label: i for i, label in enumerate(labels)}
    file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
