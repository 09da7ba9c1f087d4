"""Whether the adapter that `init.from` names is of the run's own kind, rank and scale.

Names and shapes of its tensors are the task's to judge. B A of another scale would count more or less than it did.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed.config.schema import LoRA
from rayfed.errors import nearest
from rayfed.storage.text_files import read_yaml

if TYPE_CHECKING:
    from rayfed.config.schema import Config

PEFT_TYPES = {"LORA": "lora", "IA3": "ia3", "PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}  # PEFT's word -> ours
UNSUPPORTED = ("use_dora", "rank_pattern", "alpha_pattern")  # what a LoRA of PEFT can have besides


class Scale(NamedTuple):
    """Rank and alpha of a LoRA, and whether alpha is divided by the rank's root; as a file says them."""

    rank: Any
    alpha: Any
    rslora: Any


def start_problems(config: Config) -> list[str]:
    """Return what sets the adapter in `init.from` apart from the run's own.

    Read from PEFT's adapter_config.json, or from the config.yaml of a run that has none.
    """
    where = Path(str(config.init.from_))
    folder = where / "model" if (where / "model").is_dir() else where
    file, run_config = folder / "adapter_config.json", (where if folder != where else where.parent) / "config.yaml"
    if file.is_file():
        try:
            about = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as e:
            return [f"init.from: {file} is not readable: {e}"]
        if problems := _kind_problems(about, folder, config.adapter.kind):
            return problems
        scale = Scale(about.get("r", 8), about.get("lora_alpha", 8), about.get("use_rslora", False))  # PEFT's defaults
    elif run_config.is_file() and (folder != where or where.name == "model"):
        try:
            theirs = LoRA.model_validate(read_yaml(run_config).get("adapter"))
        except ValueError:  # another kind
            return []
        scale = Scale(theirs.largest, theirs.strength(theirs.largest), theirs.rslora)
    else:
        return []
    if not isinstance(config.adapter, LoRA):
        return []
    if not all(_is_positive(x) for x in scale[:2]):
        return [f"init.from: {file} says r: {scale.rank!r} and lora_alpha: {scale.alpha!r}, allowed: numbers above 0"]
    return _scale_problems(scale, folder, config.adapter)


def _is_positive(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and x > 0


def _kind_problems(about: Mapping[str, Any], folder: Path, kind: str) -> list[str]:
    """Return why an adapter of PEFT's is not of the run's kind; about: its adapter_config.json."""
    found = str(about.get("peft_type"))
    theirs = PEFT_TYPES.get(found)
    if theirs != kind:
        allowed = f"--set adapter.kind={theirs}" if theirs else f"adapters of {', '.join(PEFT_TYPES)}"
        hint = "" if theirs else nearest(found, PEFT_TYPES)
        return [
            f"adapter.kind: {kind} found, init.from: {folder} holds one of PEFT's type {found}{hint}; allowed: {allowed}"
        ]
    other = [f"{n}: {json.dumps(about[n])}" for n in UNSUPPORTED if about.get(n)]
    if other:
        return [f"init.from: {folder} holds a LoRA with {other[0]} found; allowed: none of {', '.join(UNSUPPORTED)}"]
    return []


def _scale_problems(theirs: Scale, folder: Path, ours: LoRA) -> list[str]:
    """Return a sentence where rank or scale of a LoRA differ from the run's, with what to set."""
    rank, alpha = theirs.rank, theirs.alpha
    there, here = alpha / (rank**0.5 if theirs.rslora else rank), ours.scale(ours.largest)
    if rank == ours.largest and math.isclose(there, here):
        return []
    sets = []
    key, found = "alpha", ours.strength(ours.largest)
    if rank != ours.largest:
        key, found = "rank", ours.largest
        sets.append(f"--set adapter.rank={rank}")
    if theirs.rslora != ours.rslora:
        sets.append(f"--set adapter.rslora={str(bool(theirs.rslora)).lower()}")
    sets.append(f"--set adapter.alpha={alpha:g}")
    return [
        f"adapter.{key}: {found:g} found, init.from: {folder} holds a LoRA of rank {rank} and alpha {alpha:g}: B A counts "
        f"{there:g} times there, {here:g} times here; allowed: {' '.join(sets)}"
    ]
