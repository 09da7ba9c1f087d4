"""Requests executed in this process, without the command line around them."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import rayfed
from rayfed import api, report
from rayfed.errors import ConfigError, Interrupted, PlacementError, RunFailed
from rayfed.launch import start
from rayfed.launch.preflight import load_request
from rayfed.storage.events import read_events
from tests import toy

TINY = {"rounds": 2, "resources": {"gpus_per_actor": 0}}


def test_a_signal_before_a_run_begins_is_not_lost(tmp_path: Path) -> None:
    launcher = start.LocalLauncher()
    launcher.stop()
    with pytest.raises(RunFailed, match="stopped from outside"):
        start.start_request(toy.config(**TINY), launcher, out=tmp_path)
    (path,) = tmp_path.iterdir()
    assert not (path / "summary.json").exists()


def test_a_report_that_cannot_be_written_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written while the launcher closes, in another thread, whose error must not be lost."""

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    closed: list[bool] = []
    launcher = start.LocalLauncher()
    monkeypatch.setattr(launcher, "close", lambda: closed.append(True))
    monkeypatch.setattr(report, "write_report", full)
    done = start.start_request(toy.config(**TINY), launcher, out=tmp_path)
    assert closed == [True] and done.status == "done" and done.summary["rounds"] == 2
    (sentence,) = done.given_up
    assert "report was not written: No space left" in sentence and f"rayfed report {done.path}" in sentence
    monkeypatch.setattr(report, "write_report", lambda path: path)
    with pytest.warns(UserWarning, match="No space left"):
        api._compute(lambda watch: done, None, (), False)


def test_reports_of_a_study_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report, "write_report", full)
    study = load_request({**toy.TOY, **TINY, "method": "fedavg", "rounds": 1, "seeds": [0, 1], "arms": {"a": {}}})
    done = start.start_request(study, start.LocalLauncher(), out=tmp_path)
    assert done.status == "done" and len(done.given_up) == 3, "of two runs and the study"


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (0.5, 1), (2, 2)])
def test_a_run_without_ray_has_the_threads_of_an_actor(tmp_path: Path, cpus: float, threads: int) -> None:
    """Whatever the process has, which it gets back."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        done = start.run_local(toy.config(executor="auto", resources={"cpus_per_actor": cpus}), out=tmp_path)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    (event,) = [e for e in read_events(done.path) if e["kind"] == "executor"]
    assert event["threads"] == threads


def test_ctrl_c_does_not_wait_for_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does an error of the launcher hide one of the request."""
    begun, over = threading.Event(), threading.Event()

    def split() -> None:
        begun.set()
        over.wait(60)
        raise ConfigError("no such data")

    class Interrupting(start.LocalLauncher):
        raises: type[BaseException] = KeyboardInterrupt

        def warm_up(self, configs: object) -> None:
            assert begun.wait(10)
            if self.raises is PlacementError:
                over.set()
            raise self.raises("no place")

    monkeypatch.setattr(start, "HEAD_START", 0.01)
    launcher = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        start._split_and_warm_up(launcher, [], split)
    launcher.raises = PlacementError
    with pytest.raises(ConfigError, match="no such data"):
        start._split_and_warm_up(launcher, [], split)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({}, "the run to be ready"),
        ({"status": "starting", "round": 0, "rounds": 9}, "the run to be ready"),
        ({"status": "running", "round": 2, "rounds": 9, "at_work": ""}, "round 3 of 9, which is then committed"),
        (
            {"status": "starting", "round": 0, "rounds": 9, "at_work": "clients at work: 3", "arm": "a", "seed": 1},
            "round 1 of 9 of a, seed 1 (clients at work: 3), which is then committed",
        ),
        ({"status": "running", "round": 9, "rounds": 9}, "its last round is committed, so it ends as done"),
    ],
)
def test_what_a_stop_waits_for(status: dict[str, Any], said: str) -> None:
    assert said in start.waited_for(status)


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_after_the_last_round(
    signals: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run is done: the first one lets its report be written, a second one leaves it out."""
    over = threading.Event()

    def slow(path: Path) -> Path:
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        over.wait(20 if signals == 2 else 0)
        return path

    monkeypatch.setattr(report, "write_report", slow)
    if signals == 1:
        done = start.start_request(toy.config(**TINY), start.LocalLauncher(), out=tmp_path)
        assert done.status == "done" and done.given_up == []
    else:
        with pytest.raises(Interrupted, match=r"is done, without a report\. Write it with: rayfed report") as ended:
            start.start_request(toy.config(**TINY), start.LocalLauncher(), out=tmp_path)
        assert ended.value.exit_code == 130
        over.set()
    (path,) = tmp_path.iterdir()
    assert f"{path} is done; its report is being written" in capfd.readouterr().err
    assert (path / "summary.json").exists()


# -- another number of rounds -------------------------------------------------------------------------------------------

FADES = """
from rayfed import tree
from rayfed.methods.fedavg import FedAvg

class Fades(FedAvg):
    def round(self, state, fed, task):
        new = super().round(state, fed, task)
        return {"model": tree.scale(new["model"], 1 - fed.round / fed.rounds / 2)}
"""


def run(where: Path, method: Any = "fedavg", **changes: Any) -> Path:
    return start.run_local(toy.config(method, **{**TINY, **changes}), out=where).path


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_schedule_over_all_rounds_is_not_resumed_with_other_rounds(kind: str, tmp_path: Path) -> None:
    path = run(tmp_path, local={"schedule": {"kind": kind}})
    before = (path / "config.yaml").read_bytes()
    for rounds in (1, 5):
        with pytest.raises(ConfigError) as raised:
            start.resume_local(path, sets=[f"rounds={rounds}"])
        said = str(raised.value)
        assert said.startswith(
            f"--set rounds={rounds}: local.schedule.kind: {kind} reads `rounds`, and round 1 to 2 of {path} "
        )
        assert "a run of 2" in said and f"init.from: {path}" in said
    assert (path / "config.yaml").read_bytes() == before, "nothing half-written"
    start.resume_local(path, sets=["rounds=2"])  # as it was


def test_a_method_that_reads_rounds_is_not_resumed_with_other_rounds(tmp_path: Path) -> None:
    """Its own sentence where it has one; else what it did in the rounds so far."""
    (tmp_path / "own.py").write_text(FADES)
    path = run(tmp_path / "out", {"name": f"{tmp_path / 'own.py'}:Fades"})
    with pytest.raises(ConfigError, match=r"method.name: .*own.py:Fades reads `rounds`"):
        start.resume_local(path, sets=["rounds=3"])


def test_other_rounds_are_the_uninterrupted_run(tmp_path: Path) -> None:
    """Warm-up, decay by round and steps count from the start."""
    for i, schedule in enumerate(({"kind": "constant", "warmup": 3}, {"kind": "step", "every": 2, "gamma": 0.5})):
        more: dict[str, Any] = {"local": {"schedule": schedule}, "evaluate": {"every": 1}}
        whole = run(tmp_path / f"whole {i}", rounds=4, **more)
        part = start.resume_local(run(tmp_path / f"part {i}", rounds=2, **more), sets=["rounds=4"]).path
        rows = [rayfed.load(p).metrics().select(["round", "loss/global", "accuracy/personal"]) for p in (whole, part)]
        assert rows[0] == rows[1]


def test_a_study_is_not_resumed_with_other_rounds_where_an_arm_reads_them(tmp_path: Path) -> None:
    arms = {"plain": {}, "cosine": {"local": {"schedule": {"kind": "cosine"}}}}
    study = load_request({**toy.TOY, "rounds": 1, "method": "fedavg", "resources": TINY["resources"], "arms": arms})
    path = start.run_local(study, out=tmp_path).path
    with pytest.raises(ConfigError) as raised:
        start.resume_local(path, sets=["rounds=2"])
    assert len(raised.value.problems) == 1 and f"{path / 'cosine' / 'seed-1'}" in str(raised.value)


def test_a_run_without_a_round_takes_any_number(tmp_path: Path) -> None:
    launcher = start.LocalLauncher()
    launcher.stop()
    with pytest.raises(RunFailed, match="stopped from outside"):
        start.start_request(toy.config(**TINY, local={"schedule": {"kind": "cosine"}}), launcher, out=tmp_path)
    (path,) = tmp_path.iterdir()
    assert start.resume_local(path, sets=["rounds=3"]).summary["rounds"] == 3


def test_a_run_whose_first_row_is_damaged_is_resumed(tmp_path: Path) -> None:
    ran = toy.run_folder("fedavg", tmp_path, rounds=3, stop_after=2)
    part = ran.folder.path / "parts" / "rows-1.jsonl"
    data = bytearray(part.read_bytes())
    data[20] ^= 8
    part.write_bytes(bytes(data))
    assert start.resume_local(ran.folder.path).summary["rounds"] == 3
