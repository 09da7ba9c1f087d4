"""Calling commands as a user types them: from a shell, or in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests.conftest import ROOT

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "rounds": 2,
    "task": {
        "data": {"name": "synthetic:blobs", "examples": 320, "classes": 4, "features": 8, "test": 60},
        "model": {"name": "mlp", "hidden": [8]},
    },
    "federation": {
        "clients": 12,
        "per_round": 6,
        "partition": {"kind": "dirichlet", "alpha": 1},
        "groups": {"kind": "label_permutation", "count": 2},
        "holdout": {"kind": "clients", "fraction": 0.2},
    },
    "local": {"epochs": 2, "batch_size": 8},
    "method": {"name": "disue", "clusters": 2, "iterations": 2},
    "evaluate": {"every": 2},
    "resources": {"executor": "loop", "cohort": 3, "gpus_per_actor": 0},
    "storage": {"path": "out", "snapshot_every": 1},
}


def shell(*words: str, cwd: Path, hide: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The installed command; `hide`: a folder whose modules come before all others."""
    script = Path(sys.executable).with_name("rayfed")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "rayfed"]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    env["PYTHONPATH"] = os.pathsep.join(str(p) for p in (hide, ROOT) if p)
    return subprocess.run([*start, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


class Ended:
    """How a command in this process ended."""

    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


Call = Callable[..., Ended]


def write(path: Path, config: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(config)))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def steady(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Without what the clock decides."""
    return [{k: v for k, v in r.items() if not k.startswith(("time/", "clients/per", "seconds"))} for r in found]
