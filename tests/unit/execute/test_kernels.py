"""Kernels that change speed and last bits only, for as long as they are asked for."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.engine.messages import Job, VisitCall
from rayfed.engine.worker import Worker
from rayfed.execute.tuning import kernels
from rayfed.execute.tuning.kernels import Kernels
from rayfed.storage.tree_files import load_tree
from tests import toy
from tests.unit.execute.convolutions import BOTH, CNN, FED, LAST, ONE, at_commits, resident


def precision() -> str:
    return torch.get_float32_matmul_precision()


def test_products_go_to_onednn_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "onednn_is_exact", lambda: True)
    with kernels.using(ONE):
        assert precision() == "medium"
        with kernels.using(Kernels()):
            assert precision() == "highest"
        assert precision() == "medium"
        with kernels.using(LAST), pytest.raises(KeyError), kernels.using(ONE):
            raise KeyError
        assert precision() == "medium"
    assert precision() == "highest" and kernels._active == Kernels()


@pytest.mark.parametrize(
    ("capabilities", "units"),
    [({"avx512_f": True, "avx512_bf16": True}, True), ({"amx_bf16": True, "avx512_bf16": False}, True),
     ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False), ({}, False)],
)  # fmt: skip
def test_a_cpu_has_units_for_bfloat16_where_it_says_so(
    capabilities: dict[str, bool], units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(torch.cpu.get_capabilities().values()) >= {True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert kernels.has_bfloat16() is units


@pytest.mark.parametrize("asked", [False, True])
def test_a_run_computes_deterministically_where_it_is_asked_to(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Worker, "_visit", lambda *a: seen.append(torch.are_deterministic_algorithms_enabled()))
    worker = Worker()
    worker.runs["r"] = SimpleNamespace(config=toy.config("fedavg", resources={"deterministic": asked}))  # type: ignore[assignment]
    worker.do(Job("r", VisitCall("train", (0,), 1, 1, 1)), [])
    assert seen == [asked] and not torch.are_deterministic_algorithms_enabled()


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch's own setting for convolutions on a GPU, and no word to cuBLAS."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpus_convolutions_are_in_float32_while_a_worker_computes(
    device: str, rounding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    settings = lambda: (torch.backends.cudnn.allow_tf32, os.environ.get("CUBLAS_WORKSPACE_CONFIG"))  # noqa: E731
    monkeypatch.setattr(Worker, "_visit", lambda *a: seen.append(settings()))
    worker = Worker(device)
    for on in (False, True):
        worker.runs["r"] = SimpleNamespace(config=toy.config("fedavg", resources={"deterministic": on}))  # type: ignore[assignment]
        worker.do(Job("r", VisitCall("train", (0,), 1, 1, 1)), [])
    assert seen == [(device == "cpu", None), (device == "cpu", ":4096:8")]
    assert settings() == (True, None)


def test_an_error_leaves_convolutions_as_they_were(rounding: Any) -> None:
    with pytest.raises(KeyError), kernels.full_precision("cuda"), kernels.deterministic(True):
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 and "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_process_of_its_own_is_set_up_for_a_gpu(rounding: Any) -> None:
    kernels.prepare_gpu()
    assert not torch.backends.cudnn.allow_tf32 and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
    kernels.prepare_gpu()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "what is set stays"


def test_products_that_round_are_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.Tensor.__matmul__

    def with_amx(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if precision() == "medium" and a.dtype == torch.float32:
            return plain(a.bfloat16(), b.bfloat16()).float()
        return plain(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", with_amx)
    assert not kernels.onednn_is_exact.__wrapped__()
    assert precision() == "highest"


def test_products_that_nobody_takes_over_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.torch, "set_float32_matmul_precision", lambda how: None)
    assert not kernels.onednn_is_exact.__wrapped__()


@pytest.mark.parametrize("by", [ONE, LAST, BOTH])
@pytest.mark.parametrize(("method", "executor"), [("fedavg", "loop"), ("fedavg", "vmap"), ("scaffold", "loop")])
def test_the_same_numbers(tmp_path: Path, by: Kernels, method: str, executor: str) -> None:
    ends = []
    for name, resources in (("plain", {}), ("other", by._asdict())):
        ran = toy.run_folder(method, tmp_path / name, executor=executor, task=CNN, federation=FED, resources=resources)
        ends.append(load_tree(ran.folder.path / "model", "model"))
    moved = max(float(abs(a).max()) for a in ends[0].values())
    for n, a in ends[0].items():
        assert abs(a - ends[1][n]).max() < 1e-4 * moved, n
    assert precision() == "highest"


def test_a_run_on_other_kernels_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    about = {"task": CNN, "federation": FED, "resources": BOTH._asdict()}
    whole = toy.run_folder("scaffold", tmp_path / "whole", **about)
    toy.run_folder("scaffold", tmp_path / "cut", stop_after=1, **about)
    again = toy.run_folder("scaffold", tmp_path / "cut", resume=True, **about)
    assert again.rows == whole.rows and len(whole.clients) > 3 and again.clients.keys() == whole.clients.keys()
    for c, state in whole.clients.items():
        for (path, x), (_, y) in zip(tree.leaves(state), tree.leaves(again.clients[c]), strict=True):
            assert torch.equal(x, y), (c, path)


def test_clients_and_server_work_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[Kernels] = []
    about = {"task": CNN, "federation": FED, "resources": BOTH._asdict(), "rounds": 1}
    in_format = kernels.in_memory_format
    monkeypatch.setattr(kernels, "in_memory_format", lambda p: clients.append(kernels._active) or in_format(p))
    toy.simulate("fedavg", **about)
    assert set(clients) == {BOTH}
    server = at_commits(monkeypatch)
    toy.run_folder("fedavg", tmp_path, **about)
    assert server == [BOTH]


def test_a_gpu_keeps_its_own_products() -> None:
    r = toy.config(resources={"matmul": "onednn", "channels_last": True}).resources
    assert kernels.from_resources(r) == BOTH and kernels.from_resources(r, "cuda") == LAST


def test_convolutions_weights_are_channels_last_only_where_that_is_asked() -> None:
    p = {"w": torch.randn(3, 4, 5, 5), "gray": torch.randn(3, 1, 5, 5), "b": torch.randn(3)}
    assert kernels.in_memory_format(p) is p
    with kernels.using(LAST):
        made = kernels.in_memory_format(p)
        assert made["w"].is_contiguous(memory_format=torch.channels_last) and made["b"] is p["b"]
        assert made["gray"].stride() == (25, 1, 5, 1)  # as conv.to(memory_format=...) has it: the output follows
        torch.vmap(lambda w: kernels.in_memory_format({"w": w})["w"])(
            torch.randn(2, 3, 4, 5, 5)
        )  # as it came: vmap cannot


def test_models_are_called_with_channels_last_weights() -> None:
    task, seen = resident("loop").task, []
    conv = next(m for m in task._module.modules() if isinstance(m, torch.nn.Conv2d))
    conv.register_forward_pre_hook(lambda m, args: seen.append(m.weight.stride()[1]))
    x = torch.zeros(2, *task.input_shape)
    task.apply(task.initial, x)
    with kernels.using(LAST):
        task.apply(task.initial, x)
    assert seen == [25, 1]
