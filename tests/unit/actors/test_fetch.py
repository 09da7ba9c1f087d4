"""A folder that is fetched completely, or not at all."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.jobs.fetch import fetch_folder
from actors.jobs.head_program import Block, NoFolder, format_answer, read_answers
from rayfed.errors import ConfigError, RunFailed
from tests.fake_head import connect, details


def sent(folder: Path, tmp_path: Path) -> str:
    """What `send_folder` prints into its job's log."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom actors.jobs import head_program as program\n"
        "program.BLOCK_BYTES, program.RECEIVED_S = 300, 0\n"
        "os.ftruncate = lambda *a: None\nprogram.send_folder(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return "noise\n" + done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "head" / "j"
    (made / "clients").mkdir(parents=True)
    (made / "config.yaml").write_text("name: j\n")
    (made / "clients" / "a.bin").write_bytes(os.urandom(3000))
    (made / ".lock").write_text("")
    return made


def test_fetch_brings_the_folder(folder: Path, tmp_path: Path) -> None:
    made = connect(details("j", "SUCCEEDED", 0), log=sent(folder, tmp_path))
    for _ in range(2):  # again over the first copy
        made.client.breaks = 1
        path = fetch_folder(made, "j", tmp_path / "here")
        assert {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file()} == {
            p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"
        }
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fault", ["lost", "changed", "cut"])
def test_a_folder_that_did_not_arrive_whole_is_not_there(folder: Path, tmp_path: Path, fault: str) -> None:
    lines = sent(folder, tmp_path).splitlines(keepends=True)
    if fault == "lost":
        del lines[3]
    elif fault == "changed":
        (block,) = read_answers(lines[3:4])
        assert isinstance(block, Block)
        data = bytearray(base64.b64decode(block.data))
        data[7] ^= 1
        lines[3] = format_answer(Block(block.number, base64.b64encode(data).decode())) + "\n"
    else:
        del lines[-1]
    made = connect(details("j", "SUCCEEDED", 0), log="".join(lines))
    with pytest.raises(RunFailed, match=r"lost on the way|did not arrive as it was sent|stopped sending"):
        fetch_folder(made, "j", tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_job_without_a_folder(tmp_path: Path) -> None:
    made = connect(details("j", "FAILED", 2), log=format_answer(NoFolder("/r/j")) + "\n")
    with pytest.raises(ConfigError, match=r"no run folder on the head \(/r/j\); see: rayfed logs j"):
        fetch_folder(made, "j", tmp_path / "here")
