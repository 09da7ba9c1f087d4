"""The folder of a run: one writer at a time, and each round is either committed or not there at all.

`rayfed/storage/README.md` describes the order of a commit and what an interrupted one leaves.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rayfed.config import user_code
from rayfed.errors import ConfigError, DamagedFile, Fenced, RunFailed, nearest
from rayfed.metrics import outcome
from rayfed.storage import object_store, provenance, round_log, snapshots
from rayfed.storage.atomic import (
    Sum,
    durable_write,
    os_error_text,
    remove_leftovers,
    set_aside,
    sync_dir,
    sync_file,
    write_all,
)
from rayfed.storage.behind import Behind
from rayfed.storage.events import read_events
from rayfed.storage.fence import FencedFolder
from rayfed.storage.new_folder import create_folder, new_id, pointer_file
from rayfed.storage.owner import Owner
from rayfed.storage.saved_config import section
from rayfed.storage.temporary import sweep, temporary
from rayfed.storage.text_files import json_bytes, read_json, sealed_bytes, timestamp, yaml_bytes
from rayfed.storage.versions import versions

if TYPE_CHECKING:
    import pyarrow as pa

# what a run folder holds where, and of which kind it is
FILES = ("config.yaml", "lock.json", "state.json", "summary.json", "events.jsonl", "metrics.parquet", "report.html")
ENDINGS = (".jsonl", ".parquet", ".safetensors")  # of files in these folders
FOLDERS = ("parts", "clients", "snapshots", "segments", "rows", "model", "plots", "debug", "tensorboard")


def read_metrics(path: Path) -> pa.Table:
    """Return a table of a run, finished or not: a row per committed round, `round` from 1, null where a metric was not measured."""
    return round_log.table(list(round_log.read(Path(path)).values()))


def model_damage(path: Path, name: str = "") -> str | None:
    """Return what is wrong with the files of a run's `model/` (of that name, with any ending) against its summary; None if nothing
    is."""
    files = read_json(path / "summary.json").get("files") or {}
    found = (
        (file, Sum.read(wanted).damage(path / file))
        for file, wanted in files.items()
        if file.startswith(f"model/{name}")
    )
    return next((f"{file}: {damage}" for file, damage in found if damage), None)


def find_damage(path: Path) -> str | None:
    """Return what is wrong with the rows or the models of a run that has ended, None if nothing is."""
    try:
        rows, clients = round_log.read_log(path)
        if (ended := read_json(path / "summary.json").get("rounds", 0)) > len(rows):
            return f"metrics.parquet: {len(rows)} rows found, the run has {ended} rounds"
        files = round_log.client_files(path)
        lost = next((r for r, wanted in clients.items() if r not in files or wanted.damage(files[r])), None)
        return f"the client rows of round {lost} are damaged" if lost else model_damage(path)
    except DamagedFile as e:
        return f"{e.file}: {e.found}"


class RunFolder(FencedFolder):
    """A run on disk. Made by `create`, `open`, `clone` or `attach`; its methods raise Fenced once another writer has taken over."""

    def __init__(self, path: Path, fence: int):
        super().__init__(path, fence)
        self.behind = Behind()
        self.snapshotted = 0  # the round of the newest snapshot that this writer wrote, or went back to
        self.snapshot_s = 0.0  # what the newest snapshot took, from its first file until nothing was left to do for it
        self._last: int | None = None
        self._rows = round_log.Rows(self.path, fence)
        self._unsynced: list[Path] = []  # files of client rows
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
        split: str | None = None,
        code: Mapping[str, str] | None = None,
    ) -> RunFolder:
        """Create `PATH/NAME-ID`, or PATH itself if `exact` (a study's `ARM/seed-S`). ConfigError if that is not possible.

        run_id: instead of a new NAME-ID; stored: the URI under which every commit is uploaded (of PATH itself if `exact`);
        split, code: digests that `provenance.json` holds (`rayfed.launch.origin`).
        """
        run_id = run_id or new_id(str(config.get("name") or "run"))
        lock = {"run": run_id, "fence": 1, "owner": asdict(owner), "time": timestamp()}
        text = yaml_bytes(config)
        made = provenance.Provenance("config.yaml", text.decode(), split=split, code=code or {})
        files: dict[str, str | bytes] = {"config.yaml": text, "lock.json": sealed_bytes(lock), ".lock": b""}
        files[provenance.FILE] = made.to_bytes()
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
            previous = folder._previous_owner()
            if previous:
                _check_gone(path, previous, owner)
            mended = folder._mend()
            lock = folder.read_lock()
            folder = cls(path, lock["fence"] + 1)
            folder.write_lock(fence=folder.fence, owner=asdict(owner), time=timestamp())
            for part in ("", "parts", "clients", "snapshots", "segments", "model"):
                remove_leftovers(path / part)
            folder._event("opened", owner=str(owner), before=str(previous) if previous else None)
            for found, aside in mended:
                folder._note_aside(found, aside)
        sweep(path.parent)
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
        split: str | None = None,
        code: Mapping[str, str] | None = None,
    ) -> RunFolder:
        """Create a run at PATH that continues another one after `round`, under its own config.

        It has the source's rows up to there and its snapshot of that round. stored, split, code: as in `create`. RunFailed if there is no
        such snapshot.
        """
        snapshot = dict(snapshots.list_snapshots(source / "snapshots")).get(round)
        damage = "it is not there" if snapshot is None else snapshots.find_damage(snapshot, round)
        if snapshot is None or damage:
            raise RunFailed(f"{source} cannot be cloned at round {round}: of its snapshot, {damage}")
        hidden = temporary(path.parent, "clone")
        folder = cls.create(hidden, config, owner=owner, exact=True, split=split, code=code)
        try:
            _copy_states(source, snapshot, hidden)
            for r, row in round_log.read(source).items():
                if r <= round:
                    folder._append(r, row, round_log.read_clients(source, r))
            folder._sync_rows(folder._unsynced)
            folder._rows.close()
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

    def _previous_owner(self) -> Owner | None:
        try:
            return Owner.read(self.read_lock().get("owner"))
        except (OSError, DamagedFile):  # a writer that still runs ends at its next write, by the new fence
            return None

    def _mend(self) -> list[tuple[str, str | None]]:
        """Set aside what cannot be what its name says, and write a lock where there is no whole one; return (file and what was
        found, its new name) of each."""
        mended: list[tuple[str, str | None]] = []
        for name, kind in (*((n, "a file") for n in FILES), *((n, "a folder") for n in FOLDERS)):
            path = self.path / name
            right = path.is_dir() if kind == "a folder" else path.is_file()
            if (path.exists() or path.is_symlink()) and not right:
                mended.append((f"{name}: it is not {kind}", set_aside(path).name))
        inside = sorted(p for folder in FOLDERS for p in self.path.glob(f"{folder}/*"))
        for path in (p for p in inside if p.suffix in ENDINGS and not p.is_file()):
            where = path.relative_to(self.path).as_posix()
            mended.append((f"{where}: it is not a file", set_aside(path, self.path).name))
        try:
            self.read_lock()
        except FileNotFoundError:
            mended.append(("lock.json: it is missing", None))
        except DamagedFile as e:
            mended.append((f"lock.json: {e.found}", set_aside(e.file).name))
        if any(found.startswith("lock.json") for found, _ in mended):
            known = str(read_json(self.path / "state.json").get("run") or self.path.name)
            lock = {"run": known, "fence": self._newest_fence(), "owner": None, "time": timestamp()}
            durable_write(self.path / "lock.json", sealed_bytes(lock))
        return mended

    def _newest_fence(self) -> int:
        """Return the highest fence of which the folder has a trace, at least 1."""
        names = [p.stem for p in (*self.path.glob("parts/*"), *self.path.glob("segments/*"))]
        found = [int(n.rpartition("-")[2]) for n in names if n.rpartition("-")[2].isdigit()]
        found += [e["fence"] for e in read_events(self.path) if type(e.get("fence")) is int]
        return max(found, default=1)

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
        """The run's config as it was last written. ConfigError if it cannot be read."""
        return provenance.read_settings(self.path)

    # -- rounds --------------------------------------------------------------------------------------------------------

    def commit(
        self,
        round: int,
        row: Mapping[str, float | int | None],
        clients: Sequence[Mapping[str, Any]] | None = None,
        snapshot: Callable[[Path], None] | None = None,
    ) -> None:
        """Write a round completely or not at all: its client rows and its row, at once.

        snapshot: fills a folder with a snapshot, at once too. It becomes one behind the rounds, as soon as it and all rows up to it
        are on the disk (`snapshotted` says so); the next one waits for that. What goes wrong there is raised by the next `commit`,
        or `wait`.

        Fenced if another writer has taken over; RunFailed if the disk does not take it (earlier rounds stay valid);
        ValueError if `round` does not follow the last one.
        """
        if snapshot:
            self.wait()
        busy, began = self.behind.busy(), time.perf_counter()
        with self.unlocked(f"write round {round}"):
            last = self._last_round()
            if round != last + 1:
                raise ValueError(f"round {round} cannot follow round {last} in {self.path}")
            self._rows.begin()
            staged = snapshots.fill(self.path / "snapshots", round, self.fence, snapshot) if snapshot else None
            # The row before the snapshot becomes visible: every snapshot then has all its rows.
            self._append(round, row, clients)
            self._last = round
        if staged:
            unsynced, self._unsynced = self._unsynced, []
            self.behind.start(partial(self._publish, staged, round, unsynced, began))
        elif not busy and self._is_stored():
            self.behind.start(self.upload)

    def wait(self) -> None:
        """Return once nothing is written behind the rounds any more. Raises what went wrong there."""
        self.behind.wait()

    def _append(self, round: int, row: Mapping[str, Any], clients: Sequence[Mapping[str, Any]] | None) -> None:
        """Write a row, and rows of clients, so that they survive this process; `_sync_rows` makes them survive the machine."""
        summed = None
        if clients:
            path, summed = round_log.write_clients(self.path, self.fence, round, clients)
            self._unsynced.append(path)
        self._rows.append(round, row, summed)

    def _sync_rows(self, clients: Sequence[Path]) -> None:
        """Wait until all rows are on the disk. clients: files of client rows that may not be."""
        for path in clients:
            sync_file(path)
        if clients:
            sync_dir(self.path / "parts")
        self._rows.sync()

    def _publish(self, staged: Path, round: int, unsynced: Sequence[Path], began: float) -> None:
        """Make a filled folder the snapshot of a round, and delete the oldest ones. unsynced: as in `_sync_rows`."""
        doing = f"write the snapshot of round {round}"
        with self.unlocked(doing):
            self._sync_rows(unsynced)
            snapshots.seal(staged, round, self.fence)
        with self.locked(doing):
            snapshots.publish(staged, round)
            snapshots.prune(staged.parent, self._keep)
        self.snapshotted = round
        self.upload()
        self.snapshot_s = time.perf_counter() - began

    def rewind(self) -> tuple[int, Path | None]:
        """Go back to the newest snapshot that is undamaged and has all its rows; returns (its round, its folder), or (0, None).

        Drops what was written after it, so that the run continues from there, and `summary.json`: the run has not ended.
        """
        self.wait()
        self._rows.close()
        with self.locked("go back to the last snapshot"):
            for found, aside in round_log.mend(self.path):
                self._note_aside(found, aside)
            whole, lost = round_log.lost_rows(self.path)
            for round, damage in lost.items():
                self._set_client_rows_aside(round, damage)
            chosen: tuple[int, Path | None] = (0, None)
            segments: dict[Path, str] = {}
            for round, path in snapshots.list_snapshots(self.path / "snapshots"):
                reason = snapshots.find_damage(path, round)
                segments |= snapshots.damaged_segments(path) if reason else {}
                if whole < round:
                    reason = f"the row of round {whole + 1} is lost"
                elif first := min((r for r in lost if r <= round), default=0):
                    reason = f"the client rows of round {first} are lost"
                if reason is None:
                    chosen = (round, path)
                    break
                self._note_aside(f"snapshots/{path.name}: {reason}", set_aside(path).name)
            for file, damage in segments.items():
                if file.exists():
                    self._note_aside(f"segments/{file.name}: {damage}", set_aside(file).name)
            (self.path / "summary.json").unlink(missing_ok=True)
            dropped = round_log.drop_after(self.path, chosen[0])
            if dropped or chosen[0]:
                self._event("rewound", round=chosen[0], rows_dropped=dropped)
            self._last = self.snapshotted = chosen[0]
            return chosen

    def _set_client_rows_aside(self, round: int, damage: str) -> None:
        """Set client rows aside that are not as they were written, where there are any."""
        path = round_log.client_files(self.path).get(round)
        where = path.relative_to(self.path) if path else f"clients/round-{round:06d}.parquet"
        self._note_aside(f"{where}: {damage}", set_aside(path, self.path).name if path else None)

    def _note_aside(self, found: str, aside: str | None) -> None:
        """Write down what was found of a file, and what it is called now; None where there is nothing left of it."""
        where = f"; set aside as {aside}" if aside else ""
        self._event("set aside", note=f"{found}{where}", moved_to=aside)

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
            content = sealed_bytes({"run": self.run_id, **fields, **process}, 1)
            durable_write(self.path / "state.json", content, sync=False)

    def set_config(self, config: Mapping[str, Any]) -> None:
        """Replace `config.yaml`."""
        with self.locked("write config.yaml"):
            text = yaml_bytes(config)
            try:
                known = provenance.Provenance.read(self.path)
            except ValueError:
                known = None
            known = known or provenance.Provenance("config.yaml", text.decode())
            self._write_provenance(known.with_text(text.decode(), self.path))
            durable_write(self.path / "config.yaml", text)

    def set_provenance(self, now: provenance.Provenance) -> None:
        """Replace `provenance.json`: what the run is made from since it was resumed."""
        with self.locked(f"write {provenance.FILE}"):
            self._write_provenance(now)

    def _write_provenance(self, now: provenance.Provenance) -> None:
        durable_write(self.path / provenance.FILE, now.to_bytes())

    # -- ending --------------------------------------------------------------------------------------------------------

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """End the run: compact its rows, write `summary.json` (completed from config and rows), release the lock."""
        self.wait()
        with self.locked("finish the run"):
            config = self.config
            try:
                self._sync_rows(self._unsynced)
                self._rows.close()
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
            }
            noted = [e["note"] for e in read_events(self.path) if "note" in e]
            notes = list(dict.fromkeys([*noted, *summary.get("notes", [])]))
            models = sorted(p for p in (self.path / "model").rglob("*") if p.is_file())
            files = {p.relative_to(self.path).as_posix(): Sum.of_file(p) for p in models}
            content = {**defaults, **summary, "status": status, "notes": notes, "files": files}
            durable_write(self.path / "summary.json", sealed_bytes(content, 1))
            with contextlib.suppress(OSError):  # the summary says it
                self._event("finished", status=status, rounds=defaults["rounds"])
                self.write_lock(owner=None)
        self.upload(plain=True)

    def close(self) -> None:
        """Release the run, ended or not, so that another process may resume it while this one is alive. May be called again."""
        with contextlib.suppress(Exception):  # whoever needs what was written there has waited for it
            self.wait()
        self._rows.close()
        with contextlib.suppress(Fenced):
            with self.locked("free the lock"):
                self.write_lock(owner=None)
            self.upload()

    def upload(self, plain: bool = False) -> None:
        """Commit the folder as it is to object storage, if it is stored there. Arguments and errors as in `Mirror.push`."""
        if self._is_stored():
            assert self._mirror
            self._mirror.push(self.fence, plain=plain)

    def _is_stored(self) -> bool:
        """Return whether the folder is stored in object storage."""
        if self._mirror is None:
            self._mirror = object_store.mirror_of(self.path) or False
        return bool(self._mirror)


def _copy_states(source: Path, snapshot: Path, target: Path) -> None:
    """Copy what a clone needs of another run's states: a snapshot, the segments of client states that it names, own code."""
    shutil.copytree(snapshot, target / "snapshots" / snapshot.name)
    if (source / user_code.FOLDER).is_dir():
        shutil.copytree(source / user_code.FOLDER, target / user_code.FOLDER, dirs_exist_ok=True)
    for segment in snapshots.read_segments(snapshot):
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
    if any((path / name).is_file() for name in ("config.yaml", provenance.FILE)):
        return
    if path.is_dir():
        raise ConfigError(f"{path} is not a run folder: it has no config.yaml")
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise ConfigError(f"there is no run folder {path}{nearest(path.name, siblings)}")
