"""Kernels chosen by timing: only where they are exact, the same numbers, and a run that says what it took."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from rayfed import tree
from rayfed.config.load import load_config
from rayfed.engine.messages import Job, VisitCall
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.engine.worker import Worker
from rayfed.errors import RunFailed
from rayfed.execute.tuning import autotune, kernels
from rayfed.execute.tuning.kernels import Kernels
from rayfed.launch import start
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.tree_files import load_tree
from tests import toy

ONE, LAST, BOTH = Kernels("onednn"), Kernels("torch", True), Kernels("onednn", True)
CNN = {"data": {"name": "synthetic:images", "examples": 240, "classes": 4, "size": 8, "test": 40}, "model": "cnn"}
FED = {"groups": "none"}


def precision() -> str:
    return torch.get_float32_matmul_precision()


def test_products_are_handed_on_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
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
    told = lambda: (torch.backends.cudnn.allow_tf32, os.environ.get("CUBLAS_WORKSPACE_CONFIG"))  # noqa: E731
    monkeypatch.setattr(Worker, "_visit", lambda *a: seen.append(told()))
    worker = Worker(device)
    for on in (False, True):
        worker.runs["r"] = SimpleNamespace(config=toy.config("fedavg", resources={"deterministic": on}))  # type: ignore[assignment]
        worker.do(Job("r", VisitCall("train", (0,), 1, 1, 1)), [])
    assert seen == [(device == "cpu", None), (device == "cpu", ":4096:8")]
    assert told() == (True, None)


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
    laid = kernels.in_memory_format
    monkeypatch.setattr(kernels, "in_memory_format", lambda p: clients.append(kernels._active) or laid(p))
    toy.simulate("fedavg", **about)
    assert set(clients) == {BOTH}
    server = at_commits(monkeypatch)
    toy.run_folder("fedavg", tmp_path, **about)
    assert server == [BOTH]


def at_commits(monkeypatch: pytest.MonkeyPatch) -> list[Kernels]:
    """Grows by the kernels on which each round is committed."""
    seen: list[Kernels] = []
    commit = RunFolder.commit
    monkeypatch.setattr(RunFolder, "commit", lambda *a: seen.append(kernels._active) or commit(*a))
    return seen


def test_a_gpu_keeps_its_own_products() -> None:
    r = toy.config(resources={"matmul": "onednn", "channels_last": True}).resources
    assert kernels.from_resources(r) == BOTH and kernels.from_resources(r, "cuda") == LAST


def test_weights_of_convolutions_are_laid_out_only_where_that_is_asked() -> None:
    p = {"w": torch.randn(3, 4, 5, 5), "gray": torch.randn(3, 1, 5, 5), "b": torch.randn(3)}
    assert kernels.in_memory_format(p) is p
    with kernels.using(LAST):
        made = kernels.in_memory_format(p)
        assert made["w"].is_contiguous(memory_format=torch.channels_last) and made["b"] is p["b"]
        assert made["gray"].stride() == (25, 1, 5, 1)  # as conv.to(memory_format=...) has it: the output follows
        torch.vmap(lambda w: kernels.in_memory_format({"w": w})["w"])(
            torch.randn(2, 3, 4, 5, 5)
        )  # as it came: vmap cannot


def test_models_are_called_with_weights_so_laid_out() -> None:
    task, seen = resident("loop").task, []
    conv = next(m for m in task._module.modules() if isinstance(m, torch.nn.Conv2d))
    conv.register_forward_pre_hook(lambda m, args: seen.append(m.weight.stride()[1]))
    x = torch.zeros(2, *task.input_shape)
    task.apply(task.initial, x)
    with kernels.using(LAST):
        task.apply(task.initial, x)
    assert seen == [25, 1]


def resident(executor: str = "auto", **resources: Any) -> Resident:
    c = toy.config(task=CNN, executor=executor, resources=resources, federation=FED)
    return Resident(c, toy.federation(c), None, "cpu")


def timed(monkeypatch: pytest.MonkeyPatch, times: Callable[[str, Kernels, int], float]) -> list[tuple[str, Kernels]]:
    """The trial's looks replaced by these seconds; returns the list of what was looked at."""
    looks: list[tuple[str, Kernels]] = []

    def fake(res: Any, name: str, k: int, n: int, first: Kernels, hopeless: float = 0.0) -> Callable[[Kernels], float]:
        def look(by: Kernels) -> float:
            looks.append((name, by))
            return times(name, by, k)

        return look

    monkeypatch.setattr(autotune, "_timer", fake)
    monkeypatch.setattr(kernels, "onednn_is_exact", lambda: True)
    return looks


@pytest.mark.parametrize(
    ("seconds", "loop", "vmap", "looks"),
    [
        ({}, Kernels(), Kernels(), 6),  # all alike: the usual ones
        ({ONE: 0.5, BOTH: 0.4}, BOTH, ONE, 4),  # oneDNN clear at once: nothing is tried without it
        ({LAST: 0.9, BOTH: 0.96}, LAST, Kernels(), 6),
        ({ONE: 0.9}, ONE, ONE, 6),
        ({ONE: 0.97, LAST: 0.96, BOTH: 0.97}, Kernels(), Kernels(), 6),  # within the noise
        ({LAST: 3.0, BOTH: 3.0}, Kernels(), Kernels(), 6),  # a layout that is slower says nothing about products
    ],
)
def test_the_faster_kernels_are_taken(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[Kernels, float], loop: Kernels, vmap: Kernels, looks: int
) -> None:
    seen = timed(monkeypatch, lambda name, by, k: seconds.get(by, 1.0) * (1.0 if name == "loop" else 2.0))
    out = autotune.time_executors(resident(), 4)
    assert out["kernels"] == {"loop": loop, "vmap": vmap} and len(seen) == looks
    assert out["loop"] == seconds.get(loop, 1.0) and out["vmap"] == 2 * seconds.get(vmap, 1.0)
    assert not any(by.channels_last for name, by in seen if name == "vmap")


def test_what_is_set_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = timed(monkeypatch, lambda name, by, k: 1.0)
    autotune.time_executors(resident(matmul="torch", channels_last=False), 4)
    assert {by for _, by in seen} == {Kernels()}
    seen.clear()
    autotune.time_executors(resident(matmul="onednn", channels_last=True), 4)
    assert set(seen) == {("loop", BOTH), ("vmap", ONE)}


def test_a_tie_is_decided_on_the_whole_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def times(name: str, by: Kernels, k: int) -> float:
        sizes.append((name, k))
        return 1.0 if name == "loop" else 0.9 if k == 4 else 2.0

    timed(monkeypatch, times)
    out = autotune.time_executors(resident(matmul="torch", channels_last=False), 12)
    assert sizes == [("loop", 1), ("vmap", 4), ("vmap", 12)] and out["vmap"] == 2.0


@pytest.mark.parametrize("fits", [True, False])
def test_a_gpu_is_tried_with_the_whole_cohort(monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    timed(monkeypatch, lambda name, by, k: 1.0 if name == "loop" else 0.5)
    sizes, fake = [], autotune._timer

    def sized(res: Any, name: str, k: int, *rest: Any) -> Callable[[Kernels], float]:
        sizes.append(k)
        if k == 12 and not fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fake(res, name, k, *rest)

    monkeypatch.setattr(autotune, "_timer", sized)
    res = resident(channels_last=False)
    res.device = "cuda"
    out = autotune.time_executors(res, 12)
    assert sizes == [1, 4, 12] and (out["vmap"] == 0.5) == fits
    assert fits or "out of memory" in out["why"]


def test_a_model_that_cannot_be_vectorised_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(name: str, by: Kernels, k: int) -> float:
        if name == "vmap":
            raise RuntimeError("no rule")
        return 1.0

    timed(monkeypatch, times)
    out = autotune.time_executors(resident(), 4)
    assert out["vmap"] == float("inf") and out["why"] == "RuntimeError: no rule"


def test_one_look_is_enough_where_vmap_is_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real trial: a long call that is far from the loop's is not warmed up any further."""
    calls = []
    res = resident()
    real = autotune.execute.execute_visit

    def slow(name: str, *args: Any) -> Any:
        calls.append(name)
        if name == "vmap":
            autotune.time.sleep(autotune.BUDGET_S)
        return real(name, *args)

    monkeypatch.setattr(autotune.execute, "execute_visit", slow)
    out = autotune.time_executors(res, 4)
    assert calls.count("vmap") == 2 and calls.count("loop") > 4 and out["vmap"] > 1.3 * out["loop"]


@pytest.mark.parametrize(
    ("seconds", "asked", "kept"),
    [
        ((1.0, 1e-5), {"cohort": "auto"}, ("vmap", 7, "server")),
        ((1e-5, 1.0), {"cohort": "auto"}, ("loop", 7, "server")),
        ((1.0, 1e-2), {"cohort": "auto"}, ("vmap", 4, "actors")),
        ((1.0, 1e-5), {"cohort": "auto", "visits": "actors"}, ("vmap", 7, "actors")),
        ((1.0, 1e-2), {"cohort": "auto", "visits": "server"}, ("vmap", 4, "server")),
        ((1.0, 1e-5), {"cohort": 7}, ("vmap", 7, "server")),
        ((1.0, 1e-2), {"cohort": 7}, ("vmap", 7, "actors")),
        ((1.0, 1e-5), {"cohort": 6}, ("vmap", 6, "actors")),
    ],
)
def test_a_round_of_little_work_is_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], asked: Any, kept: Any
) -> None:
    chosen = {"loop": seconds[0], "vmap": seconds[1], "kernels": {"loop": Kernels(), "vmap": Kernels()}}
    monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: dict(chosen))
    lent: list[Any] = []
    monkeypatch.setattr(LocalPool, "adopt", lambda pool, run, res: lent.append(res))
    ran = toy.run_folder("fedavg", tmp_path, executor="auto", rounds=1, resources=asked)
    found = yaml.safe_load((ran.folder.path / "config.yaml").read_text())["resources"]
    assert (found["executor"], found["cohort"], found["visits"]) == kept
    assert [(r.config.resources.executor, r.config.resources.cohort) for r in lent] == [kept[:2]] * (
        kept[2] == "server"
    )


def test_visits_stay_with_actors_that_have_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"loop": 1.0, "vmap": 1e-5, "kernels": {"loop": Kernels(), "vmap": Kernels()}}
    monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: dict(chosen))
    pool = LocalPool()
    pool.adopts = False
    ran = toy.run_folder("fedavg", tmp_path, executor="auto", rounds=1, pool=pool, resources={"cohort": "auto"})
    found = yaml.safe_load((ran.folder.path / "config.yaml").read_text())["resources"]
    assert (found["cohort"], found["visits"]) == (7, "actors")


def test_visits_stay_with_the_actors_where_nothing_was_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lent: list[str] = []
    monkeypatch.setattr(LocalPool, "adopt", lambda pool, run, res: lent.append(run))
    toy.run_folder("fedavg", tmp_path / "a", executor="vmap", rounds=1)
    assert not lent
    ran = toy.run_folder("fedavg", tmp_path / "b", executor="vmap", rounds=1, resources={"visits": "server"})
    assert lent == [ran.folder.run_id]


def test_a_run_keeps_what_was_chosen_and_says_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"loop": 1.0, "vmap": 2.0, "kernels": {"loop": BOTH, "vmap": Kernels()}}
    monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: dict(chosen))
    ran = toy.run_folder("fedavg", tmp_path, executor="auto", rounds=1, task=CNN, federation=FED)
    path = ran.folder.path
    kept = yaml.safe_load((path / "config.yaml").read_text())["resources"]
    assert (kept["executor"], kept["matmul"], kept["channels_last"]) == ("loop", "onednn", True)
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    (event,) = [e for e in events if e["kind"] == "executor"]
    how = " ".join(
        f"--set resources.{said}"
        for said in ("executor=loop", "cohort=2", "visits=actors", "matmul=onednn", "channels_last=true")
    )
    assert event["kernels"] == BOTH._asdict() and event["repeat"] == how
    summary = json.loads((path / "summary.json").read_text())
    assert f"to repeat: {how}" in summary["notes"]


def test_an_interrupted_study_goes_on_with_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(by: Kernels) -> None:
        chosen = {"loop": 1.0, "vmap": 2.0, "kernels": {"loop": by, "vmap": Kernels()}}
        monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: dict(chosen))

    raw = {**toy.TOY, "task": CNN, "resources": {"executor": "auto", "gpus_per_actor": 0}, "method": "fedavg"}
    raw["federation"] = {**raw["federation"], "groups": "none"}
    launcher = start.LocalLauncher()

    def watch(state: dict[str, Any]) -> None:
        if state["round"] == 1:
            launcher.stop()

    choose(BOTH)
    with pytest.raises(RunFailed):
        start.start_request(load_config({**raw, "arms": {"a": {}, "b": {}}}), launcher, out=tmp_path, watch=watch)
    choose(Kernels())
    (path,) = tmp_path.iterdir()
    seen = at_commits(monkeypatch)
    assert start.resume_local(path).status == "done"
    assert seen == [BOTH, Kernels(), Kernels()]  # the second round of the first arm, both of the other


def test_each_settings_are_tried_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pool serves many runs, and what one of them leaves open another has set."""
    asked: list[str] = []

    def tried(res: Resident, cohort: int) -> dict[str, Any]:
        asked.append(res.config.resources.matmul)
        by = Kernels("onednn" if asked[-1] == "auto" else asked[-1])
        return {"loop": 1.0, "vmap": 2.0, "kernels": {"loop": by, "vmap": by}}

    monkeypatch.setattr(autotune, "time_executors", tried)
    pool, kept = LocalPool(), []
    for n, matmul in enumerate(("auto", "torch", "auto")):
        ran = toy.run_folder(
            "fedavg", tmp_path / str(n), executor="auto", rounds=1, pool=pool, resources={"matmul": matmul}
        )
        kept.append(yaml.safe_load((ran.folder.path / "config.yaml").read_text())["resources"]["matmul"])
    assert asked == ["auto", "torch"] and kept == ["onednn", "torch", "onednn"]
