"""Standard output that is closed or full while the work goes on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rayfed.cli import output
from tests.conftest import ROOT
from tests.unit.cli.commands import TINY, write

RAYFED = [sys.executable, "-c", "from rayfed.cli import main; main()"]


def start(*words: str, cwd: Path, stdout: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*RAYFED, *words], cwd=cwd, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_a_reader_that_leaves_ends_no_run(tmp_path: Path) -> None:
    """As `rayfed run ... | head -1`, from a folder that is then removed."""
    here = tmp_path / "here"
    here.mkdir()
    config = write(tmp_path / "c.yaml", {**TINY, "rounds": 60, "method": "fedavg", "track": []})
    process = start("run", str(config), "--local", "--out", str(tmp_path / "out"), cwd=here, stdout=subprocess.PIPE)
    assert process.stdout and process.stderr
    assert process.stdout.readline().startswith("starting: ")
    while process.poll() is None and not list((tmp_path / "out").glob("*/parts/rows-*")):
        time.sleep(0.05)  # torch is imported, which needs a folder
    process.stdout.close()
    here.rmdir()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 0, err
    assert err.count("standard output cannot be written to (Broken pipe)") == 1 and "Traceback" not in err
    (run,) = (tmp_path / "out").iterdir()
    assert (run / "summary.json").exists() and (run / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("closed", [False, True])
def test_commands_that_only_print_are_silent(closed: bool, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *RAYFED] if closed else RAYFED
        done = subprocess.run(
            [*command, "methods"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_stream_leads_to_nothing_from_the_first_error_on(unbuffered: bool) -> None:
    said: list[str] = []
    with open("/dev/full", "wb", buffering=0) as full:
        inner = io.TextIOWrapper(io.FileIO(os.dup(full.fileno()), "w"), "utf-8", write_through=unbuffered)
        stream = output._kept(inner, said.append)
        for _ in range(3):
            print("ü" * 9000, file=stream, flush=True)
    assert said == ["No space left on device"]


def test_streams_that_were_replaced_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    output.keep_writable()
    assert (sys.stdout, sys.stderr) == before
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "__stdout__", None)
    output.keep_writable()
    print("into nothing")
    assert sys.stdout is not None
