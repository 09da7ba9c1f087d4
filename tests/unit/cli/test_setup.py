"""init, doctor, clean, config explain, the version, and what a shell completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rayfed
from rayfed.launch import doctor
from rayfed.launch.doctor import Check
from rayfed.launch.new_project import FILES
from tests.conftest import ROOT
from tests.unit.cli.commands import TINY, Call, write


def test_the_version(call: Call) -> None:
    said = call("--version")
    assert (said.code, said.out) == (0, f"rayfed {rayfed.__version__}\n")


def completed(line: str, cwd: Path) -> list[str]:
    """What bash would complete at the end of a line, of a `python -m rayfed` whose program is called rayfed."""
    words = line.split(" ")
    env = {
        **os.environ,
        "_RAYFED_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "PYTHONPATH": str(ROOT),
    }
    code = "import sys; from rayfed.cli import main; sys.argv[0] = 'rayfed'; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_completion(tmp_path: Path) -> None:
    write(tmp_path / "fed_mine.yaml", TINY)
    assert "resume" in completed("rayfed res", tmp_path)
    assert {"fedavg", "fed_mine.yaml"} <= set(completed("rayfed run fed", tmp_path))
    assert "scaffold" in completed("rayfed methods scaf", tmp_path)
    assert "local.optimizer.lr=" in completed("rayfed run fedavg --set local.opt", tmp_path)


def test_init(call: Call, tmp_path: Path) -> None:
    said = call("init", "new")
    assert said.code == 0 and said.out.splitlines()[-2:] == ["cd new", "rayfed run config.yaml"]
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == sorted(FILES)
    said = call("init", "new")
    assert said.code == 2 and "has config.yaml, data.py, model.py, method.py already" in said.err


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("wrong", 3)])
def test_doctor(call: Call, monkeypatch: pytest.MonkeyPatch, status: str, code: int) -> None:
    monkeypatch.setattr(doctor, "check_machine", lambda runs: [Check("disk", status, f"{runs}: a finding")])
    said = call("doctor", "there", "--no-ray")
    assert (said.code, said.out.split(maxsplit=2)) == (code, [status, "disk", "there: a finding\n"])
    said = call("doctor", "--no-ray", "--json")
    assert said.code == code and json.loads(said.out) == [
        {"what": "disk", "status": status, "found": "runs: a finding"}
    ]


def test_clean(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYFED_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "tokens").mkdir(parents=True)
    (tmp_path / "cache" / "tokens" / "a").write_bytes(b"12345")
    assert call("clean").out == "nothing to delete in runs; --cache looks into the cache, too\n"
    said = call("clean", "--cache")
    assert said.code == 0 and "tokens" in said.out and said.out.endswith("5 B  in all; --yes deletes it\n")
    assert (tmp_path / "cache" / "tokens" / "a").exists()
    (row,) = json.loads(call("clean", "--cache", "--yes", "--json").out)
    assert row["deleted"] and row["bytes"] == 5 and not (tmp_path / "cache" / "tokens").exists()


def test_config_explain(call: Call) -> None:
    said = call("config", "explain", "local.optimizer.lr")
    assert said.out == "local.optimizer.lr\n  number > 0, default 0.1\n      Local learning rate.\n"
    (row,) = json.loads(call("config", "explain", "rounds", "--json").out)
    assert (row["key"], row["default"]) == ("rounds", "30")
    assert call("config", "explain", "rouns").code == 2
