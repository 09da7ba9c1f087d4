"""A small network with convolutions, on which kernels differ, and what runs of it compute on."""

from __future__ import annotations

from typing import Any

import pytest

from rayfed.engine.resident import Resident
from rayfed.execute.tuning import kernels
from rayfed.execute.tuning.kernels import Kernels
from rayfed.storage.run_folder import RunFolder
from tests import toy

ONE, LAST, BOTH = Kernels("onednn"), Kernels("torch", True), Kernels("onednn", True)
CNN = {"data": {"name": "synthetic:images", "examples": 240, "classes": 4, "size": 8, "test": 40}, "model": "cnn"}
FED = {"groups": "none"}


def resident(executor: str = "auto", **resources: Any) -> Resident:
    c = toy.config(task=CNN, executor=executor, resources=resources, federation=FED)
    return Resident(c, toy.federation(c), None, "cpu")


def at_commits(monkeypatch: pytest.MonkeyPatch) -> list[Kernels]:
    """Grows by the kernels on which each round is committed."""
    seen: list[Kernels] = []
    commit = RunFolder.commit
    monkeypatch.setattr(RunFolder, "commit", lambda *a: seen.append(kernels._active) or commit(*a))
    return seen
