"""The driver where the server or its Ray is gone: what is committed counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.driver import RayLauncher
from actors.session import RayLost
from rayfed.errors import RunFailed
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
