"""The folder of a run: one writer at a time, and each round is either committed or not there at all.

`rayfed/storage/README.md` describes the order of a commit and what an interrupted one leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rayfed.config import user_code
from rayfed.errors import ConfigError, Fenced, RunFailed, nearest
from rayfed.metrics import outcome
from rayfed.storage import object_store, round_log, snapshots
from rayfed.storage.atomic import durable_write, os_error_text, remove_leftovers, sync_dir, write_all
from rayfed.storage.fence import FencedFolder
from rayfed.storage.new_folder import create_folder, new_id, pointer_file
from rayfed.storage.owner import Owner
from rayfed.storage.saved_config import section
from rayfed.storage.text_files import json_bytes, read_yaml, timestamp, yaml_bytes
from rayfed.storage.versions import versions

if TYPE_CHECKING:
    import pyarrow as pa


def read_metrics(path: Path) -> pa.Table:
    """Return a table of a run, finished or not: a row per committed round, `round` from 1, null where a metric was not measured."""
    return round_log.table(list(round_log.read(Path(path)).values()))


class RunFolder(FencedFolder):
    """A run on disk. Made by `create`, `open`, `clone` or `attach`; its methods raise Fenced once another writer has taken over."""

    def __init__(self, path: Path, fence: int):
        super().__init__(path, fence)
        self._last: int | None = None
        self._mirror: object_store.Mirror | Literal[False] | None = None  # None: not looked up yet

    # -- opening -------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        config: Mapping[str, Any],
        *,
        owner: Owner,
        exact: bool = False,
        run_id: str | None = None,
        stored: str | None = None,
    ) -> RunFolder:
        """Create `PATH/NAME-ID`, or PATH itself if `exact` (a study's `ARM/seed-S`). ConfigError if that is not possible.

        run_id: instead of a new NAME-ID; stored: the URI under which every commit is uploaded (of PATH itself if `exact`).
        """
        run_id = run_id or new_id(str(config.get("name") or "run"))
        lock = {"run": run_id, "fence": 1, "owner": asdict(owner), "time": timestamp()}
        files: dict[str, str | bytes] = {"config.yaml": yaml_bytes(config), "lock.json": json_bytes(lock), ".lock": b""}
        files |= {**user_code.written(config), **pointer_file(stored, *([] if exact else [run_id]))}
        folder = cls(create_folder(Path(path) if exact else Path(path) / run_id, files), 1)
        folder.event("created", owner=str(owner))
        folder.upload()
        return folder

    @classmethod
    def open(cls, path: Path, *, owner: Owner) -> RunFolder:
        """Open a run to continue it. ConfigError if it is not a run folder, or if its owner is alive.

        An owner on another machine cannot be looked up; RAYFED_TAKE_OVER=1 in the environment says that it is gone.
        """
        path = Path(path)
        _check_run_folder(path)
        folder = cls(path, 0)
        with folder.locked("open the run", ConfigError, check=False):
            lock = folder.read_lock()
            previous = Owner(**lock["owner"]) if lock.get("owner") else None
            if previous:
                _check_gone(path, previous, owner)
            folder.fence = int(lock["fence"]) + 1
            folder.write_lock(fence=folder.fence, owner=asdict(owner), time=timestamp())
            for part in ("", "parts", "clients", "snapshots", "segments"):
                remove_leftovers(path / part)
            folder._event("opened", owner=str(owner), before=str(previous) if previous else None)
        folder.upload()
        return folder

    @classmethod
    def clone(
        cls,
        source: Path,
        round: int,
        path: Path,
        config: Mapping[str, Any],
        *,
        owner: Owner,
        stored: str | None = None,
    ) -> RunFolder:
        """Create a run at PATH that continues another one after `round`, under its own config.

        It has the source's rows up to there and its snapshot of that round. stored: as in `create`. RunFailed if there is no
        such snapshot.
        """
        snapshot = dict(snapshots.list_snapshots(source / "snapshots")).get(round)
        damage = "it is not there" if snapshot is None else snapshots.find_damage(snapshot, round)
        if snapshot is None or damage:
            raise RunFailed(f"{source} cannot be cloned at round {round}: of its snapshot, {damage}")
        folder = cls.create(path.parent / f".clone-{secrets.token_hex(6)}", config, owner=owner, exact=True)
        hidden = folder.path
        try:
            _copy_states(source, snapshot, hidden)
            for r, row in round_log.read(source).items():
                if r <= round:
                    round_log.append(hidden, folder.fence, r, {k: v for k, v in row.items() if k != "round"})
                    if clients := round_log.read_clients(source, r):
                        round_log.write_clients(hidden, folder.fence, r, clients)
            folder.event("cloned", source=str(source), round=round)
            for name, content in pointer_file(stored).items():
                durable_write(hidden / name, content)
            os.rename(hidden, path)
            sync_dir(path.parent)
        except OSError as error:
            raise RunFailed(f"cannot clone {source} to {path}: {os_error_text(error, path.parent)}") from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        clone = cls(path, folder.fence)
        clone.upload()
        return clone

    @classmethod
    def attach(cls, path: Path, fence: int) -> RunFolder:
        """Return the folder under the fence that the driver took (for the server process). Fenced if it is not valid any more."""
        _check_run_folder(Path(path))
        folder = cls(Path(path), fence)
        with folder.locked("attach to the run"):
            return folder

    @cached_property
    def run_id(self) -> str:
        """The name of the run, which no other run has."""
        return self.read_lock().get("run") or self.path.name

    @cached_property
    def _keep(self) -> int:
        """`storage.keep`, which does not change during this writer's life."""
        return int(section(self.config, "storage").get("keep", 2))

    @property
    def config(self) -> dict[str, Any]:
        """`config.yaml`."""
        return read_yaml(self.path / "config.yaml")

    # -- rounds --------------------------------------------------------------------------------------------------------

    def commit(
        self,
        round: int,
        row: Mapping[str, float | int | None],
        clients: Sequence[Mapping[str, Any]] | None = None,
        snapshot: Callable[[Path], None] | None = None,
    ) -> None:
        """Write a round completely or not at all: its client rows, its row and, if `snapshot` fills a folder, a snapshot.

        Fenced if another writer has taken over; RunFailed if the disk does not take it (earlier rounds stay valid);
        ValueError if `round` does not follow the last one.
        """
        with self.locked(f"write round {round}"):
            last = self._last_round()
            if round != last + 1:
                raise ValueError(f"round {round} cannot follow round {last} in {self.path}")
            keep = self._keep if snapshot else 0
            folder = self.path / "snapshots"
            if clients:
                round_log.write_clients(self.path, self.fence, round, clients)
            staged = snapshots.stage(folder, round, self.fence, snapshot) if snapshot else None
            # The row before the snapshot becomes visible: every snapshot then has all its rows.
            undo = round_log.append(self.path, self.fence, round, row, sync=staged is not None)
            if staged:
                try:
                    snapshots.publish(staged, round)
                except OSError:
                    undo()
                    raise
                snapshots.prune(folder, keep)
            self._last = round
        self.upload()

    def rewind(self) -> tuple[int, Path | None]:
        """Go back to the newest snapshot that is undamaged and has all its rows; returns (its round, its folder), or (0, None).

        Drops what was written after it, so that the run continues from there, and `summary.json`: the run has not ended.
        """
        with self.locked("go back to the last snapshot"):
            rows = round_log.read(self.path)
            chosen: tuple[int, Path | None] = (0, None)
            for round, path in snapshots.list_snapshots(self.path / "snapshots"):
                lost = next((r for r in range(1, round + 1) if r not in rows), None)
                reason = f"the row of round {lost} is lost" if lost else snapshots.find_damage(path, round)
                if reason is None:
                    chosen = (round, path)
                    break
                aside = snapshots.set_aside(path)
                self._event("snapshot skipped", round=round, reason=reason, moved_to=aside.name)
            (self.path / "summary.json").unlink(missing_ok=True)
            dropped = round_log.drop_after(self.path, chosen[0])
            if dropped or chosen[0]:
                self._event("rewound", round=chosen[0], rows_dropped=dropped)
            self._last = chosen[0]
            return chosen

    def metrics(self) -> pa.Table:
        """Return a row per committed round: column `round` from 1, then every metric, null where it was not measured."""
        return read_metrics(self.path)

    def clients(self, round: int | None = None) -> list[dict[str, Any]]:
        """Return a row per client of an evaluated round, by default the newest."""
        return round_log.read_clients(self.path, round)

    def _last_round(self) -> int:
        if self._last is None:
            self._last = max(round_log.read(self.path), default=0)
        return self._last

    # -- other files ---------------------------------------------------------------------------------------------------

    def event(self, kind: str, **fields: Any) -> None:
        """Append a line to `events.jsonl`: time, kind, fence and the fields."""
        with self.locked("write events.jsonl"):
            self._event(kind, **fields)

    def _event(self, kind: str, **fields: Any) -> None:
        line = json_bytes({"time": timestamp(), "kind": kind, "fence": self.fence, **fields})
        fd = os.open(self.path / "events.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            end = os.lseek(fd, 0, os.SEEK_END)
            torn = end > 0 and os.pread(fd, 1, end - 1) != b"\n"
            write_all(fd, b"\n" + line if torn else line)
        finally:
            os.close(fd)

    def state(self, **fields: Any) -> None:
        """Replace `state.json`, the live status, by the fields and run, pid, host and time."""
        with self.locked("write state.json"):
            process = {"pid": os.getpid(), "host": socket.gethostname(), "time": timestamp()}
            content = json_bytes({"run": self.run_id, **fields, **process}, 1)
            durable_write(self.path / "state.json", content, sync=False)

    def set_config(self, config: Mapping[str, Any]) -> None:
        """Replace `config.yaml`."""
        with self.locked("write config.yaml"):
            durable_write(self.path / "config.yaml", yaml_bytes(config))

    # -- ending --------------------------------------------------------------------------------------------------------

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """End the run: compact its rows, write `summary.json` (completed from config and rows), release the lock."""
        with self.locked("finish the run"):
            config = self.config
            try:
                rows = round_log.compact(self.path)
            except OSError:  # a full disk: readers take the parts too
                rows = round_log.read(self.path)
            method = config.get("method")
            defaults: dict[str, Any] = {
                "status": status,
                "rounds": max(rows, default=0),
                "wall_s": None,
                "method": method.get("name") if isinstance(method, Mapping) else method,
                "seed": config.get("seed"),
                "executor": section(config, "resources").get("executor"),
                "versions": versions(),
                "metrics": outcome(list(rows.values())),
                "notes": [],
            }
            durable_write(self.path / "summary.json", json_bytes({**defaults, **summary, "status": status}, 1))
            with contextlib.suppress(OSError):  # the summary says it
                self._event("finished", status=status, rounds=defaults["rounds"])
                self.write_lock(owner=None)
        self.upload(plain=True)

    def close(self) -> None:
        """Release the run, ended or not, so that another process may resume it while this one is alive. May be called again."""
        with contextlib.suppress(Fenced):
            with self.locked("free the lock"):
                self.write_lock(owner=None)
            self.upload()

    def upload(self, plain: bool = False) -> None:
        """Commit the folder as it is to object storage, if it is stored there. Arguments and errors as in `Mirror.push`."""
        if self._mirror is None:
            self._mirror = object_store.mirror_of(self.path) or False
        if self._mirror:
            self._mirror.push(self.fence, plain=plain)


def _copy_states(source: Path, snapshot: Path, target: Path) -> None:
    """Copy what a clone needs of another run's states: a snapshot, the segments of client states that it names, own code."""
    shutil.copytree(snapshot, target / "snapshots" / snapshot.name)
    if (source / user_code.FOLDER).is_dir():
        shutil.copytree(source / user_code.FOLDER, target / user_code.FOLDER, dirs_exist_ok=True)
    manifest = snapshot / "clients.json"
    states = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    for segment in {s for s, _ in states.values()}:
        (target / "segments").mkdir(exist_ok=True)
        file = Path("segments") / f"{segment}.safetensors"
        shutil.copyfile(source / file, target / file)


def _check_gone(path: Path, previous: Owner, owner: Owner) -> None:
    """Check that the previous owner does not write any more. ConfigError if it does or may do."""
    if previous == owner or not previous.alive() or (previous.here() and previous.pid == owner.pid):
        return
    if previous.here():
        raise ConfigError(f"{path} is being written by {previous}, which still runs; stop it first")
    if os.environ.get("RAYFED_TAKE_OVER") != "1":
        raise ConfigError(
            f"{path} belongs to {previous}; whether that still runs cannot be seen from "
            f"{socket.gethostname()}. If it is gone, set RAYFED_TAKE_OVER=1 and repeat the command"
        )


def _check_run_folder(path: Path) -> None:
    """Raise ConfigError if a folder is not a run's."""
    for name in ("config.yaml", "lock.json"):
        if not (path / name).is_file():
            if path.is_dir():
                raise ConfigError(f"{path} is not a run folder: it has no {name}")
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise ConfigError(f"there is no run folder {path}{nearest(path.name, siblings)}")
