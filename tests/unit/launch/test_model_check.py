"""A pretrained model that cannot be built as asked is refused before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from rayfed.errors import ConfigError
from rayfed.launch import model_check
from rayfed.launch import start as launch
from rayfed.launch.preflight import load_request
from tests import toy
from tests.tiny import changes, make_places, make_vit


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


def change(where: Path, **values: Any) -> None:
    """Change a model folder's config.json."""
    about = json.loads((where / "config.json").read_text(encoding="utf-8"))
    (where / "config.json").write_text(json.dumps({**about, **values}), encoding="utf-8")


def test_a_description_of_another_network_takes_no_memory(asked: dict[str, Any], tmp_path: Path) -> None:
    """64 GB are refused before they are allocated, also where no table of the file says so."""
    change(tmp_path / "vit", intermediate_size=10**9)
    before = psutil.Process().memory_info().rss
    (problem,) = problems_of(asked, tmp_path)
    assert (
        "describes a network of 66,000,002,906 numbers (264.0 GB), the safetensors" in problem
        and "do not belong together" in problem
    )
    assert psutil.Process().memory_info().rss - before < 1e9
    change(tmp_path / "vit", intermediate_size=24, num_hidden_layers=10**9)
    assert "is incomplete: config.json has 1000000000 layers" in problems_of(asked, tmp_path)[0]


@pytest.mark.parametrize("value", ["x", None, [], -1, 0.5, 10**400])
def test_values_that_transformers_does_not_take(asked: dict[str, Any], tmp_path: Path, value: Any) -> None:
    change(tmp_path / "vit", hidden_size=value)
    assert all(p.startswith(("task.model: ", "adapter.")) for p in problems_of(asked, tmp_path))


def test_a_start_of_an_own_model_is_read_before_anything_starts(asked: dict[str, Any], tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    small = {
        **asked,
        "task": {"data": "digits", "model": "linear"},
        "adapter": "none",
        "method": "fedavg",
        "init": {"from": str(start)},
    }
    assert "holds no model.safetensors" in problems_of(small, tmp_path)[0]
    right = {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    save_file({**right, "head.bias": torch.zeros(9)}, start / "model.safetensors")
    assert "is of another model or adapter: misfit head.bias (1 in all)" in problems_of(small, tmp_path)[0]
    save_file({**right, "head.bias": torch.full((10,), torch.nan)}, start / "model.safetensors")
    assert problems_of(small, tmp_path) == [
        f"init.from: {start} holds values that are not finite, the first in head.bias"
    ]
    save_file(right, start / "model.safetensors")
    with pytest.raises(Started):
        launch.start_request(load_request(small), Launcher())
    whole = (start / "model.safetensors").read_bytes()
    (start / "model.safetensors").write_bytes(whole[:-3])
    assert problems_of(small, tmp_path)[0].startswith(
        f"init.from: {start / 'model.safetensors'} ({len(whole) - 3:,} bytes) is no"
    )


def test_a_process_that_dies_while_it_tries_a_model(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died:
        returncode = -9

        def __init__(self, *words: Any, **more: Any) -> None:
            pass

        def communicate(self) -> tuple[str, str]:
            return "", ""

        def kill(self) -> None:
            pass

    monkeypatch.setattr("rayfed.launch.model_check.subprocess.Popen", Died)
    monkeypatch.delitem(sys.modules, "torch")
    (problem,) = problems_of(asked, tmp_path)
    assert problem == f"task.model: hf:{tmp_path / 'vit'}: the process that tried it ended by signal 9, maybe of memory"


@pytest.mark.parametrize(
    "method",
    ["ccvr", "feddpa", "fedgen", {"name": "fedoa", "pool": "head"}, {"name": "disue", "inputs": "statistics"}],
    ids=str,
)
def test_a_method_that_needs_features_refuses_a_model_without_a_last_linear_layer(method: Any, tmp_path: Path) -> None:
    places = make_places(tmp_path)  # GPT-2's classifier stands before the choice of a token: its input is (B, T, d)
    values = toy.merge(toy.TOY, changes(places, "gpt2", method=method, storage={"path": str(tmp_path / "out")}))
    (problem,) = problems_of({**values, "adapter": {"kind": "lora", "rank": 2}}, tmp_path)
    name = method if isinstance(method, str) else method["name"]
    assert f"does not end in a torch.nn.Linear on features (B, d), and method {name} needs the model in two" in problem


@pytest.mark.parametrize(
    "method", ["ccvr", "fedgen", {"name": "fedoa", "pool": "head"}, {"name": "disue", "inputs": "statistics"}], ids=str
)
def test_a_method_that_needs_features_takes_a_network_with_batch_normalisation(method: Any, tmp_path: Path) -> None:
    """Its features are asked for after a training step on some rows has been tried."""
    net = {"task": {"model": {"name": f"{Path(__file__).parents[2] / 'own_nets.py'}:batchnorm"}}, "method": method}
    values = toy.merge(toy.TOY, {**net, "storage": {"path": str(tmp_path / "out")}})
    with pytest.MonkeyPatch.context() as m, pytest.raises(Started):
        m.setenv("RAYFED_CACHE", str(tmp_path / "cache"))
        launch.start_request(load_request(values), Launcher())
