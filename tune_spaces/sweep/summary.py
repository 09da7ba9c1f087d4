"""The end of a sweep: snapshots that nobody needs any more are removed, and summary, tables and page are written."""

from __future__ import annotations

import shlex
from pathlib import Path

from rayfed.errors import Interrupted, RunFailed
from rayfed.launch.start import Finished
from rayfed.report.html import path_text
from rayfed.storage import snapshots
from rayfed.storage.sweep_folder import Outcome, load_sweep
from tune_spaces.sweep.folder import TRIALS
from tune_spaces.sweep.trial_folder import TrialFolder


def prune_snapshots(path: Path, keep: int) -> None:
    """Remove the snapshots that a clone might have needed, but for the newest `keep` of each run: no trial is cloned any more."""
    from rayfed.storage.snapshots import collect_segments

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


def failure(path: Path, failed: int, trials: int, resume: str) -> RunFailed:
    """Return the error of a sweep with failed trials."""
    ends = [(t, o) for t in load_sweep(path).unsound if (o := t.outcome) and o.diverged is None]
    what = f"{failed} of {trials} trials failed"
    if ends:
        trial, first = ends[0]
        seed = "" if first.seed is None else f", seed {first.seed}"
        what += f"; the first: {trial.last['folder']}{seed}: {first.reason}"
    what += f"\nEach is named with its error in {path / 'sweep.html'}."
    if all(o.certain for _, o in ends) and len(ends) == failed:
        return RunFailed(f"{what} The same code would fail again; once it is mended: {resume} --accept-changes")
    return RunFailed(f"{what} Try again what may end otherwise with: {resume}")


def note_failure(path: Path, trial: str, error: str) -> None:
    """Note what Tune says of a trial that failed, where its own process could not."""
    folder = TrialFolder(path, trial)
    if folder.outcome() is None:
        lines = error.strip().splitlines() or ["unknown"]
        reason = next((line for line in lines if line.startswith("rayfed.errors.")), lines[-1])
        folder.write_outcome(Outcome(reason, certain=False))


def resume_command(path: Path, uri: str | None) -> str:
    """Return the command that continues a sweep, as one would type it here."""
    return f"rayfed sweep --resume {uri or shlex.quote(path_text(path))}"
