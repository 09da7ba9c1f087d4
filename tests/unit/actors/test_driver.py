"""The driver where the server or its Ray is gone: what is committed counts."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors import driver
from actors.driver import RayLauncher
from actors.placement import Plan
from actors.session import RayLost
from rayfed.errors import PlacementError, RunFailed
from rayfed.launch import start
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from tests import toy


class Broken(RayLauncher):
    """A launcher whose server computes `rounds` rounds of a run in this process, and whose Ray is then lost."""

    def __init__(self, error: Exception, rounds: int, summary: bool = False):
        super().__init__("local")
        self.error, self.rounds, self.summary = error, rounds, summary

    def start(self, configs: Any) -> None:
        pass

    def _follow(self, config: Any, federation: Any, folder: Any, watch: Any) -> Any:
        from rayfed.engine.pool import LocalPool
        from rayfed.engine.runner import Runner

        runner = Runner(config, federation, LocalPool(), RunFolder.attach(folder.path, folder.fence))
        runner.prepare()
        runner.advance(self.rounds)
        if self.summary:
            runner.finish()
        raise self.error


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def run(out: Path, *about: Any) -> start.Finished:
    return start.start_request(toy.config(rounds=3), Broken(*about), out=out)


@pytest.mark.parametrize(("error", "summary"), [(RayLost("the head is gone"), False), (RayActorError(), True)])
def test_a_run_whose_rounds_are_committed_is_done(tmp_path: Path, error: Exception, summary: bool) -> None:
    finished = run(tmp_path / "lost", error, 3, summary)
    whole = start.run_local(toy.config(rounds=3), out=tmp_path / "whole")
    assert finished.status == "done" and finished.summary["rounds"] == 3
    models = [(f.path / "model" / "model.safetensors").read_bytes() for f in (finished, whole)]
    assert models[0] == models[1] and (finished.path / "report.html").is_file()


@pytest.mark.parametrize(
    ("error", "said"), [(RayLost("the head is gone"), "the head is gone"), (RayActorError(), "the server actor died")]
)
def test_a_run_with_rounds_left_says_how_to_go_on(tmp_path: Path, error: Exception, said: str) -> None:
    with pytest.raises(RunFailed, match=said) as caught:
        run(tmp_path, error, 2)
    (folder,) = tmp_path.iterdir()
    assert caught.value.exit_code == 4 and f"rayfed resume {folder}" in str(caught.value)
    assert start.resume_local(folder).status == "done"
    assert RunFolder.open(folder, owner=Owner.me()).metrics().num_rows == 3


def test_a_run_whose_last_snapshot_does_not_last_is_resumed_rather_than_computed_here(tmp_path: Path) -> None:
    whole = start.run_local(toy.config(rounds=3), out=tmp_path)
    (whole.path / "summary.json").unlink()
    config = toy.config(rounds=3)
    assert driver._all_committed(config, whole.path)
    shutil.rmtree(whole.path / "snapshots" / "round-000003")
    assert not driver._all_committed(config, whole.path)


# -- a place for the actors --------------------------------------------------------------------------------------------


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Placement groups that are placed where `fits` says so of their bundles, and 3 free CPUs."""
    import ray

    module = importlib.import_module("ray.util.placement_group")  # its name in ray.util is the function's
    seen: dict[str, Any] = {"asked": [], "removed": 0, "fits": lambda bundles: False}

    class Group:
        def __init__(self, bundles: list[dict[str, float]], strategy: str):
            self.bundles = bundles
            seen["asked"].append(len(bundles))

        def wait(self, timeout_seconds: float) -> bool:
            return seen["fits"](self.bundles)

    def remove(group: Group) -> None:
        seen["removed"] += 1

    monkeypatch.setattr(module, "placement_group", Group)
    monkeypatch.setattr(module, "remove_placement_group", remove)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    context = SimpleNamespace(get_task_id=lambda: "t", get_assigned_resources=lambda: {"CPU": 1.0})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    return seen


def plan(actors: int) -> Plan:
    return Plan(actors, 1.0, 0.0, 1, 0.0, 0.0, False)


def test_an_open_number_of_actors_makes_do_with_what_is_free(groups: dict[str, Any]) -> None:
    launcher = RayLauncher("local")
    groups["fits"] = lambda bundles: len(bundles) <= 3
    assert launcher._reserve(plan(3), 1) == plan(3) and groups["asked"] == [3]
    assert launcher._reserve(plan(4), 1) == plan(3) and groups["asked"] == [3, 4, 3] and groups["removed"] == 1


def test_a_place_that_does_not_become_free_is_refused_with_what_is_free_and_what_the_task_holds(
    groups: dict[str, Any],
) -> None:
    launcher = RayLauncher("local")
    with pytest.raises(PlacementError) as caught:
        launcher._reserve(plan(4), 4)
    said = str(caught.value)
    assert "4 actors of 1 CPU" in said and "free: 3 CPU" in said and "the task that starts this run holds 1 CPU" in said
    assert groups["asked"] == [4, 4] and groups["removed"] == 2 and launcher.group is None
