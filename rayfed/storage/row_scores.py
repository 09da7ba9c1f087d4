"""Scores of each row of an evaluated round, `rows/round-R.npz` of a run folder: only where `evaluate.rows` asks for them.

They are written before their round is committed, and written again with the same values where that round is repeated.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.storage.atomic import durable_write

if TYPE_CHECKING:
    import numpy as np


def file(run: Path, round: int) -> Path:
    """Return the file of a round."""
    return run / "rows" / f"round-{round:06d}.npz"


def write(run: Path, round: int, scopes: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write a round's scores: scope -> {rows, sizes, NAME ...}, as in `rayfed.engine.evaluation.Evaluator.kept`."""
    import numpy as np

    path = file(run, round)
    path.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {f"{scope}/{n}": x for scope, found in scopes.items() for n, x in found.items()}
    made = io.BytesIO()
    np.savez_compressed(made, **arrays)
    durable_write(path, made.getvalue())


def read(run: Path, round: int) -> dict[str, dict[str, np.ndarray]]:
    """Return a round's scores, scope -> {rows, sizes, NAME ...}; empty where none were kept."""
    import numpy as np

    if not file(run, round).is_file():
        return {}
    out: dict[str, dict[str, np.ndarray]] = {}
    with np.load(file(run, round)) as found:
        for key in found.files:
            scope, _, name = key.partition("/")
            out.setdefault(scope, {})[name] = found[key]
    return out
