"""TensorBoard: scalars by round, into event files under the run folder's `tensorboard/`."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayfed.track import Row


class TensorBoard:
    """Logs a run to TensorBoard. A resumed run starts a new file, which replaces the steps from there on."""

    def open(self, run: str, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Remember the folder; the first row creates the file."""
        self.path = folder / "tensorboard"
        self._file: Any = None
        self._writer: Any = None
        return {}

    def row(self, round: int, metrics: Row) -> None:
        """Write one round; None values are left out. OSError if the file cannot be written."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is None:
            self._create_file()
            self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
            # Readers drop the steps of earlier files from here on: no step is shown twice after a resume.
            start = SessionLog(status=SessionLog.START)
            self._put(Event(wall_time=time.time(), step=round, session_log=start))
        found = {k: float(v) for k, v in metrics.items() if k != "round" and v is not None}
        values = [Summary.Value(tag=k, simple_value=v) for k, v in found.items()]
        self._put(Event(wall_time=time.time(), step=round, summary=Summary(value=values)))
        self._file.flush()

    def _create_file(self) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.path.mkdir(parents=True, exist_ok=True)
        # Files are read in the order of their names, which are times in seconds: a later file needs a later name.
        stamps = [p.name.split(".")[3] for p in self.path.glob("events.out.tfevents.*")]
        stamp = max([int(time.time()), *(int(s) + 1 for s in stamps if s.isdigit())])
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = open(self.path / name, "wb")  # noqa: SIM115
        self._writer = RecordWriter(self._file)

    def _put(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def close(self, status: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = self._writer = None
