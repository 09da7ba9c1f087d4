"""A trial's folder: its runs, what they were cloned from, and the rows that it has reported."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rayfed.errors import RunFailed
from rayfed.launch.start import has_ended
from rayfed.storage import round_log
from rayfed.storage.atomic import durable_write, write_all
from rayfed.storage.events import read_events
from rayfed.storage.sweep_folder import OUTCOME, POINT, ROWS, Outcome, read_rows
from rayfed.storage.text_files import json_bytes, sealed_bytes
from tune_spaces.sweep.domains import Point
from tune_spaces.sweep.folder import TRIALS
from tune_spaces.sweep.messages import TrialPointer, TrialRow


@dataclass(frozen=True)
class TrialRecord:
    """The content of point.json, next to a trial's runs. origin: the runs that they were cloned from, None if they are no clones."""

    trial: str
    point: Point
    origin: TrialPointer | None

    @classmethod
    def read(cls, file: Path) -> TrialRecord:
        """Read it."""
        found = json.loads(file.read_text(encoding="utf-8"))
        origin = TrialPointer(**found["origin"]) if found["origin"] else None
        return cls(found["trial"], found["point"], origin)


class TrialFolder:
    """The folder of a trial, `place`, and in it the folder of its runs, `runs`.

    A trial's first runs are in `place` itself. Where PBT lets a trial continue from another one's runs, their clones are in
    `place/clone-N`. The rows of all of them are in one file in `place`.
    """

    def __init__(self, home: Path, name: str):
        """home: the sweep's folder; name: the trial's."""
        self.home, self.name = home, name
        self.place = self.runs = home / TRIALS / name
        self.origin: TrialPointer | None = None

    def find_runs(self, point: Point, pointer: TrialPointer | None) -> None:
        """Set `runs`, where the runs are or will be, and `origin`, what they were cloned from.

        pointer: where the trial continues: at its own runs, or at another trial's. Raises RunFailed where another point's runs
        are in the way.
        """
        self.place.mkdir(parents=True, exist_ok=True)
        files = [*self.place.glob(POINT), *self.place.glob(f"*/{POINT}")]
        known = {file.parent: TrialRecord.read(file) for file in files}
        mine = str(self.place.relative_to(self.home))
        self.runs, self.origin = self.place, None
        if pointer is None:
            if self.runs in known and known[self.runs].point != point:
                raise RunFailed(f"{self.runs} holds another point of an earlier start; move it away")
        elif pointer.folder == mine or pointer.folder.startswith(f"{mine}/"):
            self.runs = self.home / pointer.folder
            self.origin = known[self.runs].origin
        else:
            same = [f for f, record in known.items() if record.origin == pointer and record.point == point]
            number = 1 + len(list(self.place.glob("clone-*")))
            self.runs = same[0] if same else self.place / f"clone-{number}"
            self.runs.mkdir(exist_ok=True)
            self.origin = pointer

    @property
    def relative(self) -> str:
        """`runs` as it is called inside the sweep's folder."""
        return str(self.runs.relative_to(self.home))

    def run_folder(self, seed: int) -> Path:
        """Return a seed's run folder."""
        return self.runs / f"seed-{seed}"

    def origin_run(self, seed: int) -> Path:
        """Return the run folder that a seed's run was cloned from."""
        assert self.origin is not None
        return self.home / self.origin.folder / f"seed-{seed}"

    def ended_seeds(self, seeds: Sequence[int], rounds: int) -> set[int]:
        """Return the seeds whose runs are done."""
        return {s for s in seeds if has_ended(self.run_folder(s), rounds)}

    def write_record(self, point: Point) -> None:
        """Note the point and the origin of the runs."""
        durable_write(self.runs / POINT, json_bytes(asdict(TrialRecord(self.name, point, self.origin))))

    # -- its end -------------------------------------------------------------------------------------------------------

    def outcome(self) -> Outcome | None:
        """Return how the trial ended, where it diverged or failed."""
        return Outcome.read(self.place)

    def write_outcome(self, outcome: Outcome | None) -> None:
        """Note how the trial ended, or that it is tried again."""
        if outcome is None:
            (self.place / OUTCOME).unlink(missing_ok=True)
            return
        self.place.mkdir(parents=True, exist_ok=True)
        durable_write(self.place / OUTCOME, json_bytes(asdict(outcome)))

    def why_null(self, r: int, metric: str, seeds: Sequence[int]) -> str:
        """Return why a metric is null in round r of a seed's run, as its events say; "" where none does."""
        events = (e for seed in seeds for e in read_events(self.run_folder(seed)))
        found = (
            e for e in events if e["kind"] == "not scored" and e.get("round") == r and metric in e.get("metrics", ())
        )
        return str(next(found, {}).get("reason", ""))

    # -- rows ----------------------------------------------------------------------------------------------------------

    def rows(self) -> list[TrialRow]:
        """Return the rows of these runs by round; of a round that was written twice, the last."""
        found = {row["round"]: TrialRow(**row) for row in read_rows(self.place) if row["folder"] == self.relative}
        return [found[r] for r in sorted(found)]

    def make_row(self, r: int, point: Point, seeds: Sequence[int]) -> TrialRow:
        """Collect what the seeds' runs measured in round r; of a run that stopped early, in its last."""
        metrics = {}
        for seed in seeds:
            found = round_log.read(self.run_folder(seed))
            row = found[min(r, max(found))]
            metrics[str(seed)] = {k: v for k, v in row.items() if k != "round" and v is not None}
        return TrialRow(self.name, r, self.relative, point, metrics)

    def write_rows(self, rows: Sequence[TrialRow]) -> None:
        """Append rows, on disk when this returns."""
        fd = os.open(self.place / ROWS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            for row in rows:
                write_all(fd, b"\n" + sealed_bytes(asdict(row)))  # behind a torn line, if there is one
            os.fsync(fd)
        finally:
            os.close(fd)

    def write_missing_rows(self, last: int, point: Point, seeds: Sequence[int], metric: str) -> None:
        """Write rows of rounds up to `last` that were committed, but whose rows were not when the trial was killed."""
        written = {row.round for row in self.rows()}
        first = self.origin.round if self.origin else 0
        longest: dict[int, Any] = max((round_log.read(self.run_folder(s)) for s in seeds), key=len)
        missing = [
            r for r, row in longest.items() if first < r <= last and r not in written and row.get(metric) is not None
        ]
        self.write_rows([self.make_row(r, point, seeds) for r in missing])
