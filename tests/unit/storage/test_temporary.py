"""Hidden folders that a process makes: swept once it is gone, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rayfed.storage import temporary as module
from rayfed.storage.new_folder import new_folder
from rayfed.storage.temporary import sweep, temporary
from tests.conftest import ROOT


def test_what_a_dead_process_left_is_swept_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from rayfed.storage.temporary import temporary
for kind in ("new", "old", "clone"):
    made = temporary(Path({str(tmp_path)!r}), kind)
    made.mkdir()
    (made / "file").write_text("x")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    left = set(os.listdir(tmp_path))
    assert {n.split("-")[0] for n in left} == {".new", ".old", ".clone"}
    mine = temporary(tmp_path, "new")
    mine.mkdir()
    for other in ("run-1", ".new-somebody-elses", ".hidden"):
        (tmp_path / other).mkdir()
    with monkeypatch.context() as m:
        m.setattr(module.Owner, "me", lambda: module.Owner("another-machine", 1, "x"))
        sweep(tmp_path)
    assert left < set(os.listdir(tmp_path)), "whether they run on another machine cannot be seen"
    new_folder(tmp_path, "next", {"a": "b"})
    assert {n for n in os.listdir(tmp_path) if not n.startswith("next")} == {
        mine.name, "run-1", ".new-somebody-elses", ".hidden",
    }  # fmt: skip


def test_a_reused_pid_is_somebody_else(tmp_path: Path, monkeypatch) -> None:
    mine = temporary(tmp_path, "new")
    mine.mkdir()
    sweep(tmp_path)
    assert mine.exists()
    monkeypatch.setattr(module, "process_start", lambda pid: "another boot/1")
    sweep(tmp_path)
    assert not mine.exists()
    sweep(tmp_path / "nowhere")
