"""Submitting: the job that is sent, what is refused, and how an ended job is continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.jobs import connection, head_program, submission
from actors.jobs.package import pack
from rayfed.config.schema import Config, Study
from rayfed.errors import ConfigError, PlacementError
from rayfed.launch.preflight import load_request
from tests import toy
from tests.fake_head import connect, details


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A head like this machine, or changed: `head(project="other")`."""
    here = replace(head_program.describe_environment(), missing=[])

    def probed(**changes: Any) -> None:
        there = replace(here, **changes)
        monkeypatch.setattr(submission, "probe_environment", lambda connection, names: there)

    probed()
    return probed


def test_a_job_is_the_command_in_a_folder_with_exactly_its_files(
    head: Callable[..., None], own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://m")
    monkeypatch.setenv("WANDB_API_KEY", "k")
    c, made = toy.config(f"{own}:Mine"), connect()
    monkeypatch.setattr(connection, "POLL_S", 0.01)
    made.client.unready = 2  # a head that has just started
    name = submission.submit_package(made, c, pack(c), "run", ["config.yaml"], "runs/a b")
    sent = made.client.sent
    assert sent["entrypoint"] == "exec python -m rayfed run config.yaml --out \"${RAYFED_HOME:-$HOME}\"/'runs/a b'"
    assert len(sent["files"]) == 2 and yaml.safe_load(sent["files"]["config.yaml"])["rounds"] == c.rounds
    about = sent["metadata"]
    assert about["job_name"] == about["run"] == name == sent["submission_id"] and name.startswith("toy-")
    assert about["clients"] == "14" and about["per_round"] == "7" and about["method"].endswith(":Mine")
    env = sent["runtime_env"]["env_vars"]
    assert env["RAYFED_RUN_ID"] == name and env["MLFLOW_TRACKING_URI"] == "http://m" and "WANDB_API_KEY" not in env
    head(project="other")
    submission.submit_package(made, c, pack(c), "run", ["config.yaml"], "/abs")
    assert "rayfed/cli/__init__.py" in made.client.sent["files"] and made.client.sent["entrypoint"].endswith(
        " --out /abs"
    )


def test_an_ended_job_is_continued_in_its_own_folder(
    head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.parquet").write_text("x")
    folders = json.dumps({"data/0-data": str(data)})
    monkeypatch.setenv("RAYFED_TAKE_OVER", "1")
    ended = details("j", "STOPPED", folders=folders), details("s", "FAILED", 4, out="s3://b/x?region=eu")
    made = connect(*ended, details("k"))
    monkeypatch.setattr(submission, "Connection", lambda address: made)
    assert submission.submit_resume("j", ["rounds=12"], address=None)[1] == "j-2"
    sent = made.client.sent
    assert sent["entrypoint"] == 'exec python -m rayfed resume "${RAYFED_HOME:-$HOME}"/runs/j --set rounds=12'
    assert sent["files"] == {"data/0-data/train.parquet": b"x"}
    about = sent["metadata"]
    assert (about["run"], about["out"], about["rounds"], about["folders"]) == ("j", "runs", "12", folders)
    assert about["job_name"] == "j-2" and about["method"] == "fedavg" and about["command"] == "resume"
    env = sent["runtime_env"]["env_vars"]
    assert env["RAYFED_RUN_ID"] == "j" and env["RAYFED_TAKE_OVER"] == "1"
    made.client.known["j-2"] = details("j-2", **about)  # that one fails too, later
    with pytest.raises(ConfigError, match="j-2 is still at work on it; end it with: rayfed stop j-2"):
        submission.submit_resume("j", [], address=None)
    made.client.known["j-2"].status.value = "FAILED"
    assert submission.submit_resume("j-2", [], address=None)[1] == "j-3"
    assert submission.submit_resume("s", [], address=None, options=("--scale-up", "9"))[1] == "s-2"
    assert made.client.sent["entrypoint"].endswith(" resume 's3://b/x/s?region=eu' --scale-up 9")
    for where, out in (("/nfs/runs/r", "/nfs/runs"), ("runs/r", "runs"), ("gs://b/runs/r?x=y", "gs://b/runs?x=y")):
        assert submission.submit_resume(where, [], address=None)[1] == "r-2"
        about = made.client.sent["metadata"]
        assert (about["run"], about["out"]) == ("r", out) and "folders" not in about
    with pytest.raises(ConfigError, match="k is still at work"):
        submission.submit_resume("k", [], address=None)
    with pytest.raises(ConfigError, match=r"has no job 'nn'.*runs/NAME-ID"):
        submission.submit_resume("nn", [], address=None)
    (data / "train.parquet").unlink()
    data.rmdir()
    with pytest.raises(ConfigError, match="travelled with the job and is not here any more"):
        submission.submit_resume("j", [], address=None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"python": "3.9.1"}, "Python 3.9.1 there"),
        ({"ray": "2.10.0"}, "Ray 2.10.0 there"),
        ({"ray": None}, "has no Ray"),
        ({"missing": ["peft", "rich"]}, "pip install peft rich"),
    ],
)
def test_a_head_that_cannot_run_it_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    there = replace(head_program.describe_environment(), missing=[])
    assert submission.needs_project(there, "http://h") is False
    with pytest.raises(PlacementError) as e:
        submission.needs_project(replace(there, **change), "http://h")
    assert sentence in str(e.value) and "\n" not in str(e.value) and e.value.exit_code == 3


def test_what_is_wrong_is_reported_before_the_cluster_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="method"):
        submission.submit_request(
            "quickstart", ["method.name=nothing"], command="run", out=None, address="http://127.0.0.1:1"
        )
    with pytest.raises(PlacementError, match="no Ray dashboard answers"):
        submission.submit_request("quickstart", [], command="run", out=None, address="http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"space 'x\.py'"):
        submission.submit_request("quickstart", [], command="sweep", spaces="x.py,b", out=None, address=None)


def test_described_counts_a_studys_runs() -> None:
    study = load_request("quickstart")
    assert isinstance(study, Study) and isinstance(study.base, Config)
    noted = submission.describe_request(study, run="r", out="runs", command="run")
    methods = [c.method.name for _, _, c in study.runs()]
    assert noted.runs == len(study.runs()) and noted.method == ", ".join(dict.fromkeys(methods))
    assert (noted.run, noted.out, noted.command) == ("r", "runs", "run")
