"""A pretrained model that cannot be built as asked is refused before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayfed.errors import ConfigError
from rayfed.launch import model_check
from rayfed.launch import start as launch
from rayfed.launch.preflight import load_request
from tests.tiny import make_vit


class Started(Exception):
    """The request was taken."""


class Launcher(launch.LocalLauncher):
    def warm_up(self, configs: Any) -> None:
        pass

    def start(self, configs: Any) -> None:
        raise Started


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("RAYFED_CACHE", str(tmp_path / "cache"))
    make_vit(tmp_path / "vit")
    return {
        "rounds": 1,
        "task": {"data": "digits", "model": f"hf:{tmp_path / 'vit'}"},
        "adapter": {"kind": "lora", "rank": 4, "targets": ["q_proj", "v_proj"]},
        "federation": {"clients": 4, "partition": {"kind": "iid"}},
        "method": "fedit",
        "storage": {"path": str(tmp_path / "out")},
    }


def problems_of(values: dict[str, Any], tmp_path: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        launch.start_request(load_request(values), Launcher())
    assert not (tmp_path / "out").exists()
    return error.value.problems


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ({"targets": ["q_prj"]}, "adapter.targets: 'q_prj' matches no layer (did you mean 'q_proj'?)"),
        ({"rank": 17}, "adapter.rank: 17 found"),
    ],
)
def test_what_only_the_network_knows_is_refused_before_anything_starts(
    asked: dict[str, Any], tmp_path: Path, adapter: dict[str, Any], says: str
) -> None:
    assert says in problems_of({**asked, "adapter": {**asked["adapter"], **adapter}}, tmp_path)[0]


def test_a_start_that_does_not_fit(asked: dict[str, Any], tmp_path: Path) -> None:
    make_vit(tmp_path / "other", layers=1)
    (problem,) = problems_of({**asked, "init": {"from": str(tmp_path / "other")}}, tmp_path)
    assert problem.startswith("init.from:") and "is of another model or adapter" in problem


def test_all_arms_of_a_study_at_once(asked: dict[str, Any], tmp_path: Path) -> None:
    arms = {n: {"adapter": {"targets": [t]}} for n, t in (("good", "q_proj"), ("bad", "q_prj"), ("worse", "nothing"))}
    problems = problems_of({**asked, "seeds": [0, 1], "arms": arms}, tmp_path)
    assert [p.partition(":")[0] for p in problems] == ["arms.bad", "arms.worse"]


def test_what_is_right_is_checked_once(asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[set[str]] = []
    real = model_check.check_models
    monkeypatch.setattr(model_check, "check_models", lambda asked: (checked.append(set(asked)), real(asked))[1])
    for changed in ({}, {"seed": 3}, {"resources": {"executor": "loop"}}, {"adapter": {**asked["adapter"], "rank": 2}}):
        with pytest.raises(Started):
            launch.start_request(load_request({**asked, **changed}), Launcher())
    assert len(checked) == 3
    make_vit(tmp_path / "vit", hidden_size=8)  # other files
    problems_of({**asked, "adapter": {**asked["adapter"], "rank": 9}}, tmp_path)
    with pytest.raises(Started):
        launch.start_request(load_request(asked), Launcher())
    assert len(checked) == 5


def test_another_process_checks_where_torch_is_not_loaded(asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps([asked, {**asked, "adapter": {**asked["adapter"], "rank": 17}}]))
    code = f"""
import json, sys
from rayfed.launch import start as launch
from rayfed.launch.federations import Federations
from rayfed.launch.preflight import load_request
for values in json.load(open({str(tmp_path / "c.json")!r})):
    try:
        Federations().checked(load_request(values))
        print("right")
    except launch.ConfigError as e:
        print(e)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    right, *wrong = done.stdout.splitlines()
    assert right == "right" and "adapter.rank: 17 found" in wrong[0], done.stderr
    assert len(list((tmp_path / "cache" / "checked").iterdir())) == 1


def test_a_method_that_cannot_have_buffers_is_refused_before_anything_starts(nets: Any, tmp_path: Path) -> None:
    values = {
        **nets("batchnorm"), "rounds": 1, "federation": {"clients": 4, "partition": {"kind": "iid"}},
        "method": "cellm", "storage": {"path": str(tmp_path / "out")},
    }  # fmt: skip
    values["task"]["data"] = {"name": "synthetic:blobs", "examples": 80, "classes": 4, "features": 8, "test": 8}
    (problem,) = problems_of(values, tmp_path)
    assert problem.startswith("method.name: cellm found, task.model: ") and "1.running_var" in problem
    assert problem.endswith("allowed: local.buffers: frozen, or a network without them")
    with pytest.raises(Started):
        launch.start_request(load_request({**values, "local": {"buffers": "frozen"}}), Launcher())
