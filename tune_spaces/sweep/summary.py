"""How a sweep ends: snapshots that nobody needs any more go, and its summary, its tables and its page are written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rayfed.errors import Interrupted, RunFailed
from rayfed.launch.start import Finished
from rayfed.storage import snapshots
from tune_spaces.sweep.folder import TRIALS


def prune_snapshots(path: Path, keep: int) -> None:
    """Remove the snapshots that a clone might have needed, but for the newest `keep` of each run: no trial is cloned any more."""
    from rayfed.engine.client_states import collect_segments

    for folder in (path / TRIALS).glob("**/snapshots"):
        snapshots.prune(folder, keep)
        collect_segments(folder, folder.parent / "segments")


def write_summary(path: Path, *, interrupted: bool, failed: int) -> Finished:
    """Write summary.json, sweep.parquet and sweep.html. failed: number of trials."""
    from rayfed.report.sweep import write_sweep

    summary = write_sweep(path, ended=not interrupted, failed=failed)
    return Finished(path, summary["status"], summary)


def interruption(signum: int, resume: str) -> Interrupted:
    """Return the error of a sweep that a signal has ended. resume: the command that continues it."""
    error = Interrupted(
        f"interrupted; the trials' runs are as they were at their last snapshots. Continue with: {resume}"
    )
    error.exit_code = 128 + signum
    return error


def failure(path: Path, errors: Sequence[str], trials: int, resume: str) -> RunFailed:
    """Return the error of a sweep with failed trials. errors: what Tune says of them."""
    reason = _first_reason(path, errors)
    return RunFailed(f"{len(errors)} of {trials} trials failed; the first: {reason}\nTry them again with: {resume}")


def resume_command(path: Path, uri: str | None) -> str:
    """Return the command that continues a sweep, as one would type it here."""
    here = Path.cwd()
    shown = shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
    return f"rayfed sweep --resume {uri or shown}"


def _first_reason(path: Path, errors: Sequence[str]) -> str:
    """Return why the first failed trial did, as its run has noted it; else the last line of what Tune says."""
    for file in sorted((path / TRIALS).glob("**/events.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]
        endings = [e for e in lines if e["kind"] in ("failed", "finished")]
        if endings and endings[-1]["kind"] == "failed":
            return f"{file.parent.relative_to(path)}: {str(endings[-1]['error']).splitlines()[0]}"
    lines = errors[0].strip().splitlines()
    return next((line for line in lines if line.startswith("rayfed.errors.")), lines[-1])
