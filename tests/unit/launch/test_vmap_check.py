"""Visits of own code that `vmap` cannot run are refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayfed.errors import ConfigError
from rayfed.launch import start
from rayfed.launch.preflight import load_request
from tests import toy

OWN = """
import torch
from torch import nn
from rayfed import methods, tree, visit
from rayfed.methods.fedavg import FedAvg
from rayfed.methods.scaffold import Scaffold

def changed(visit, step, **more):
    phase = visit.phases[0]
    return visit._replace(phases=[phase._replace(step=lambda carry, batch, key: step(phase.step(carry, batch, key)))], **more)

def halved(carry):
    return tree.scale(carry, 0.5) if carry["model"]["head.bias"].sum() > 0 else carry

class Branches(FedAvg):
    @visit
    def train(self, task):
        return changed(super().train(task), halved)

class Says(FedAvg):
    @visit
    def train(self, task):
        return changed(super().train(task), halved, vectorize="it branches")

class Fine(Scaffold):
    @visit
    def train(self, task):
        return changed(super().train(task), lambda carry: carry)

class Ends(nn.Module):
    def __init__(self, classes, shape):
        super().__init__()
        self.head = nn.Linear(shape[0], classes)
    def forward(self, x):
        return self.head(x) * (2.0 if float(self.head.weight.sum()) > 9 else 1.0)

def net(classes, shape):
    return Ends(classes, shape)
"""


class Launcher(start.LocalLauncher):
    def warm_up(self, configs: Any) -> None:
        pass

    def start(self, configs: Any) -> None:
        raise NotImplementedError("it would start")


@pytest.mark.parametrize(
    ("method", "model", "executor", "says"),
    [
        (
            "own.py:Branches",
            "mlp",
            "vmap",
            "resources.executor: vmap found, but visit 'train' of Branches does not run under it",
        ),
        ("own.py:Branches", "mlp", "auto", None),
        ("own.py:Says", "mlp", "vmap", None),
        ("own.py:Fine", "mlp", "vmap", None),
        ("fedavg", "own.py:net", "vmap", "visit 'train' of FedAvg does not run under it"),
        ("fedavg", "own.py:net", "loop", None),
    ],
)
def test_what_vmap_cannot_run_is_refused(
    method: str, model: str, executor: str, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYFED_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    request = load_request(
        {**toy.TOY, "task": {**toy.TOY["task"], "model": model}, "method": method}, [f"resources.executor={executor}"]
    )
    with pytest.raises(ConfigError if says else NotImplementedError, match=says or "it would start"):
        start.start_request(request, Launcher(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
