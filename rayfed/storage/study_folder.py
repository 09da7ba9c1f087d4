"""The folder of a study: where the runs of its arms and seeds are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def study_base(study: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config part of a study file."""
    base = study.get("base")
    return base if isinstance(base, Mapping) else study


def study_runs(path: Path, study: Mapping[str, Any]) -> Iterator[tuple[str, int, Path]]:
    """Yield (arm, seed, folder) of every run that the study asks for, whether it has begun or not."""
    seeds = study.get("seeds") or [study_base(study).get("seed", 0)]
    for arm in study.get("arms") or {"run": {}}:
        for seed in seeds:
            yield str(arm), int(seed), path / str(arm) / f"seed-{seed}"
