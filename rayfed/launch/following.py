"""What happens in runs, told to a caller as it is committed: each row once, in order, whatever process computes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayfed.metrics import has_scores
from rayfed.storage import round_log, snapshots
from rayfed.storage.provenance import read_settings, settings_file
from rayfed.storage.run_status import RunStatus
from rayfed.storage.study_folder import study_runs

Tell = Callable[
    [str, Path, dict[str, Any]], Any
]  # ("round" | "evaluate" | "end", run folder, the row); True stops the run
SHARE = 10.0  # times as long as a look at a run's rows took is waited for the next one: long runs have many


class Follower:
    """Is given live statuses, as a `watch`, and tells what has been committed since the last one.

    On Ray, statuses come a few times a second: several rounds may then be told at once, none is left out.
    """

    def __init__(self, tell: Tell, resumed: Path | None = None):
        """resumed: the folder of a run or a study that goes on; what its runs had before is not told again."""
        self.tell = tell
        self.asked_to_stop = False
        self.current: Path | None = None
        self._due = 0.0
        self.told: dict[Path, int] = {p: _last_snapshot(p) for p in _runs(resumed)} if resumed else {}

    def __call__(self, status: dict[str, Any]) -> bool:
        """Take a live status, which has the run's `path`. Returns whether the run shall stop."""
        path = Path(status["path"]) if "path" in status else None
        if path != self.current:
            self.close()
            self.current = path
        if path is not None and status.get("round", 0) > self.told.get(path, 0) and time.monotonic() >= self._due:
            began = time.monotonic()
            self._tell_rows(path)
            self._due = began + SHARE * (time.monotonic() - began)
        return self.asked_to_stop

    def close(self) -> None:
        """Tell what is left of the run under way, and its end where it has ended well."""
        path, self.current = self.current, None
        if path is None:
            return
        self._tell_rows(path)
        if (path / "summary.json").is_file():
            self.tell("end", path, {"status": RunStatus.DONE.value})

    def _tell_rows(self, path: Path) -> None:
        seen = self.told.get(path, 0)
        for r, row in round_log.read(path).items():
            if r > seen:
                self.told[path] = r
                events = ("round", "evaluate") if has_scores([row]) else ("round",)
                self.asked_to_stop |= any([self.tell(event, path, row) is True for event in events])


def _runs(path: Path) -> list[Path]:
    """Return the folders of the runs of a run's or a study's folder."""
    if settings_file(path) != "study.yaml":
        return [path]
    return [folder for _, _, folder in study_runs(path, read_settings(path, "study.yaml"))]


def _last_snapshot(path: Path) -> int:
    return max((r for r, _ in snapshots.list_snapshots(path / "snapshots")), default=0)
