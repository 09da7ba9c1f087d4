"""Help, wrong requests and exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.unit.cli.commands import TINY, Call, shell, write

COMMANDS = (
    "run",
    "reproduce",
    "resume",
    "validate",
    "partition",
    "cp",
    "methods",
    "systems",
    "tasks",
    "runs",
    "report",
    "claims",
    "sweep",
    "monitor",
    "submit",
    "status",
    "logs",
    "stop",
    "fetch",
    "init",
    "doctor",
    "clean",
    "config",
    "export",
)


WRONG = [
    (["rnu", "fedavg"], "No such command 'rnu'"),
    (["run"], "Missing argument"),
    (["run", "fedavg", "--locla"], "--local"),
    (["run", "fedavgg", "--local"], "(did you mean 'fedavg'?); ready: anarchic-fl, autoflip, bdpfl, ccvr, "),
    (["run", "fedavg", "--local", "--set", "method=scafold"], "(did you mean 'scaffold'?)"),
    (["run", "fedavg", "--local", "--set", "federation.cleints=3"], "(did you mean 'clients'?)"),
    (["run", "fedavg", "--local", "--set", "rounds"], "--set rounds: write it as a.b=value"),
    (["run", "fedavg", "--local", "--set", "task.data=parquet:nowhere"], "task.data: "),
    (["run", "fedavg", "--local", "--set", "task.model=nowhere.py:net"], "task.model: file 'nowhere.py' does not exist"),
    (["run", "fedavg", "--local", "--set", "init.from=nowhere"], "init.from: 'nowhere' holds no model"),
    (["run", "fedavg", "--local", "--set", "task.model={name: vit-tiny, patch: 3}"], "task.model.patch: 3 does not divide"),
    (["validate", "fedavg", "--set", "rouns=3"], "rouns: unknown key (did you mean 'rounds'?)"),
    (["resume", "nowhere", "--local"], "nowhere: no run to resume here"),
    (["report", "nowhere"], "report: nowhere is not a run or a study folder"),
    (["runs", "nowhere"], "runs: nowhere is not a folder"),
    (["methods", "scafold"], "'scafold' is unknown (did you mean 'scaffold'?)"),
    (["systems", "fed-merg"], "systems: 'fed-merg' is unknown (did you mean 'fed-merge'?)"),
    (["tasks", "digit"], "tasks: 'digit' is unknown (did you mean 'digits'?)"),
    (["cp", "quikstart", "mine.yaml"], "cp: no ready config 'quikstart' (did you mean 'quickstart'?)"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), WRONG, ids=[" ".join(w) for w, _ in WRONG])
def test_a_wrong_request(call: Call, tmp_path: Path, words: list[str], says: str) -> None:
    said = call(*words)
    assert said.code == 2 and said.out in ("", "starting: reading digits\n")  # some are found in the data
    assert said.err.startswith("rayfed:") and says in said.err and "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_a_wrong_request_from_the_shell(tmp_path: Path) -> None:
    said = shell("run", "fedavg", "--local", "--set", "rounds=0", "--set", "methd=x", cwd=tmp_path)
    assert (said.returncode, said.stdout) == (2, "")
    first, *problems = said.stderr.splitlines()
    assert first == "rayfed:" and len(problems) == 2
    assert problems[0].startswith("rounds: 0 found") and "(did you mean 'method'?)" in problems[1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(call: Call, tmp_path: Path) -> None:
    write(tmp_path / "c.yaml", TINY)
    said = call("run", "c.yaml", "--local", "--out", "c.yaml/runs")
    assert said.code == 2 and "storage.path: cannot make a run folder in c.yaml/runs" in said.err
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_a_similar_command_is_suggested_once(call: Call) -> None:
    assert call("rnu", "fedavg").err.lower().count("did you mean") == 1


def test_a_set_that_is_no_yaml(call: Call) -> None:
    assert call("validate", "fedavg", "--set", "track=[").code == 2


def test_help_lists_every_command() -> None:
    said = shell("--help", cwd=ROOT)
    assert said.returncode == 0
    listed = re.findall(r"^│ (\w+)  ", said.stdout, re.M)
    assert set(listed) >= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(call: Call, command: str) -> None:
    said = call(command, "--help")
    assert said.code == 0 and f"rayfed {command}" in said.out
    options = {"run": "--set --out --address --local --json", "resume": "--set --address --local --json"}
    assert all(o in said.out for o in options.get(command, "--help").split())
