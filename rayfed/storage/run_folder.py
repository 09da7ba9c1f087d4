"""The folder of a run: one writer at a time, and a round is either in it or not.

The writer holds a number, the fence. Whoever opens the folder raises it, so a writer that was thought dead and is not
can write nothing more. Every write checks the fence under a file lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rayfed.config import user_code
from rayfed.errors import ConfigError, Fenced, RayfedError, RunFailed, nearest
from rayfed.metrics import outcome
from rayfed.storage import object_store, round_log, snapshots
from rayfed.storage.atomic import durable_write, json_bytes, now, read_yaml, sweep, sync_dir, why, write_all, yaml_bytes
from rayfed.storage.owner import Owner

if TYPE_CHECKING:
    import pyarrow as pa

LOCK_WAIT_S = 300.0  # an old writer may be in the middle of a large snapshot


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers, without importing any of it."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for label, package in {"rayfed": "rayfed-engine", "torch": "torch", "ray": "ray", "numpy": "numpy"}.items():
        try:
            found[label] = version(package)
        except PackageNotFoundError:
            found[label] = "not installed"
    return found


def new_id(name: str) -> str:
    """`NAME-20261121-153000-ab12`: sorts by time, is unique, and is a file name."""
    safe = re.sub(r"[^A-Za-z0-9_.+=-]+", "-", name).lstrip(".") or "run"
    return f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def new_folder(
    path: Path, name: str, files: Mapping[str, str | bytes], *, run_id: str | None = None, stored: str | None = None
) -> Path:
    """Make `PATH/NAME-ID` with `files` in one step. ConfigError if it cannot be written. Arguments as in `RunFolder.create`."""
    run_id = run_id or new_id(name)
    return _make(Path(path) / run_id, {**files, **_pointer(stored, run_id)})


def _pointer(stored: str | None, *inner: str) -> dict[str, str | bytes]:
    return {object_store.POINTER: object_store.pointer(object_store.join(stored, *inner))} if stored else {}


def _make(target: Path, files: Mapping[str, str | bytes]) -> Path:
    path, hidden = target.parent, target.parent / f".new-{secrets.token_hex(6)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        hidden.mkdir()
        for file, content in files.items():
            (hidden / file).parent.mkdir(exist_ok=True)
            durable_write(hidden / file, content.encode() if isinstance(content, str) else content)
        if target.exists():
            raise ConfigError(f"{target} exists already; continue it with: rayfed resume {target}")
        os.rename(hidden, target)
        sync_dir(path)
    except OSError as error:
        text = f"storage.path: cannot make a run folder in {path}: {why(error, path)}"
        raise ConfigError(f"{text}. Choose another folder with --out DIR") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return target


def read_metrics(path: Path) -> pa.Table:
    """One row per committed round of a run, finished or not: `round` from 1, null where a metric was not measured."""
    return round_log.table(list(round_log.read(Path(path)).values()))


class RunFolder:
    """A run on disk. Made by `create`, `open` or `attach`; see the module for what a writer may rely on."""

    def __init__(self, path: Path, fence: int):
        self.path, self.fence = Path(path), fence
        self._last: int | None = None
        self._mirror: object_store.Mirror | Literal[False] | None = None  # None: not looked up yet

    # -- beginning -----------------------------------------------------------------------------------------------------

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
        """Make `PATH/NAME-ID`, or PATH itself if `exact` (a study's `ARM/seed-S`). ConfigError if that cannot be.

        run_id: instead of a new NAME-ID; stored: the URI under which every commit is uploaded (of PATH itself if `exact`).
        """
        run_id = run_id or new_id(str(config.get("name") or "run"))
        lock = {"run": run_id, "fence": 1, "owner": asdict(owner), "time": now()}
        files: dict[str, str | bytes] = {"config.yaml": yaml_bytes(config), "lock.json": json_bytes(lock), ".lock": b""}
        files |= {**user_code.written(config), **_pointer(stored, *([] if exact else [run_id]))}
        made = cls(_make(Path(path) if exact else Path(path) / run_id, files), 1)
        made.event("created", owner=str(owner))
        made.upload()
        return made

    @classmethod
    def open(cls, path: Path, *, owner: Owner) -> RunFolder:
        """Take a run over, to continue it. ConfigError if it is no run folder, or its owner lives.

        An owner on another machine cannot be looked up; RAYFED_TAKE_OVER=1 in the environment says that it is gone.
        """
        path = Path(path)
        _must_be_run(path)
        folder = cls(path, 0)
        with folder._locked("open the run", ConfigError, check=False):
            lock = folder._lock()
            other = Owner(**lock["owner"]) if lock.get("owner") else None
            if other and other != owner and other.alive() and not (other.here() and other.pid == owner.pid):
                if other.here():
                    raise ConfigError(f"{path} is being written by {other}, which still runs; stop it first")
                if os.environ.get("RAYFED_TAKE_OVER") != "1":
                    raise ConfigError(
                        f"{path} belongs to {other}; whether that still runs cannot be seen from "
                        f"{socket.gethostname()}. If it is gone, set RAYFED_TAKE_OVER=1 and repeat the command"
                    )
            folder.fence = int(lock["fence"]) + 1
            lock |= {"fence": folder.fence, "owner": asdict(owner), "time": now()}
            durable_write(path / "lock.json", json_bytes(lock))
            for part in ("", "parts", "clients", "snapshots", "segments"):
                sweep(path / part)
            folder._event("opened", owner=str(owner), before=str(other) if other else None)
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
        """Make PATH a run that goes on after `round` of another one, with its rows up to there and its snapshot of that round,
        under a config of its own. stored: as in `create`. RunFailed if there is no such snapshot."""
        found = dict(snapshots.listed(source / "snapshots")).get(round)
        damage = "it is not there" if found is None else snapshots.damage(found, round)
        if found is None or damage:
            raise RunFailed(f"{source} cannot be cloned at round {round}: of its snapshot, {damage}")
        made = cls.create(path.parent / f".clone-{secrets.token_hex(6)}", config, owner=owner, exact=True)
        hidden = made.path
        try:
            shutil.copytree(found, hidden / "snapshots" / found.name)
            if (source / user_code.FOLDER).is_dir():
                shutil.copytree(source / user_code.FOLDER, hidden / user_code.FOLDER, dirs_exist_ok=True)
            states = json.loads((found / "clients.json").read_text()) if (found / "clients.json").exists() else {}
            for segment in {s for s, _ in states.values()}:
                (hidden / "segments").mkdir(exist_ok=True)
                file = Path("segments") / f"{segment}.safetensors"
                shutil.copyfile(source / file, hidden / file)
            for r, row in round_log.read(source).items():
                if r <= round:
                    round_log.append(hidden, made.fence, r, {k: v for k, v in row.items() if k != "round"})
                    if clients := round_log.read_clients(source, r):
                        round_log.write_clients(hidden, made.fence, r, clients)
            made.event("cloned", source=str(source), round=round)
            for name, content in _pointer(stored).items():
                durable_write(hidden / name, content if isinstance(content, bytes) else content.encode())
            os.rename(hidden, path)
            sync_dir(path.parent)
        except OSError as error:
            raise RunFailed(f"cannot clone {source} to {path}: {why(error, path.parent)}") from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        folder = cls(path, made.fence)
        folder.upload()
        return folder

    @classmethod
    def attach(cls, path: Path, fence: int) -> RunFolder:
        """Write under the fence that the driver took (from the server process). Fenced if it is not valid any more."""
        _must_be_run(Path(path))
        folder = cls(Path(path), fence)
        with folder._locked("attach to the run"):
            return folder

    @cached_property
    def run_id(self) -> str:
        """A name of the run that no other run has."""
        return self._lock().get("run") or self.path.name

    @cached_property
    def _keep(self) -> int:
        """`storage.keep`, which does not change while this writer lives."""
        return int((self.config.get("storage") or {}).get("keep", 2))

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
        """Write a round: its client rows, its row and, if `snapshot` fills a folder, a snapshot. All of it or nothing.

        Fenced if another writer has taken over; RunFailed if the disk refuses (the earlier rounds stay valid);
        ValueError if `round` does not follow the last one.
        """
        with self._locked(f"write round {round}"):
            last = self._round()
            if round != last + 1:
                raise ValueError(f"round {round} cannot follow round {last} in {self.path}")
            keep = self._keep if snapshot else 0
            if clients:
                round_log.write_clients(self.path, self.fence, round, clients)
            staged = _snapshots.stage(self.path / "snapshots", round, self.fence, snapshot) if snapshot else None
            # The row before the snapshot becomes visible: every snapshot then has all its rows.
            undo = round_log.append(self.path, self.fence, round, row, sync=staged is not None)
            if staged:
                try:
                    _snapshots.publish(staged, round)
                except OSError:
                    undo()
                    raise
                _snapshots.prune(self.path / "snapshots", keep)
            self._last = round
        self.upload()

    def rewind(self) -> tuple[int, Path | None]:
        """Go back to the newest snapshot that is whole and has all its rows: (its round, its folder), or (0, None).

        Drops what was written after it, so that the run continues from there, and `summary.json`: the run goes on.
        """
        with self._locked("go back to the last snapshot"):
            found = round_log.read(self.path)
            chosen: tuple[int, Path | None] = (0, None)
            for round, path in snapshots.listed(self.path / "snapshots"):
                lost = next((r for r in range(1, round + 1) if r not in found), None)
                why = f"the row of round {lost} is lost" if lost else snapshots.damage(path, round)
                if why is None:
                    chosen = (round, path)
                    break
                aside = snapshots.set_aside(path)
                self._event("snapshot skipped", round=round, reason=why, moved_to=aside.name)
            (self.path / "summary.json").unlink(missing_ok=True)
            dropped = round_log.keep_until(self.path, chosen[0])
            if dropped or chosen[0]:
                self._event("rewound", round=chosen[0], rows_dropped=dropped)
            self._last = chosen[0]
            return chosen

    def metrics(self) -> pa.Table:
        """One row per committed round: column `round` from 1, then every metric, null where it was not measured."""
        return read_metrics(self.path)

    def clients(self, round: int | None = None) -> list[dict[str, Any]]:
        """One row per client of an evaluated round, by default the newest."""
        return round_log.read_clients(self.path, round)

    def _round(self) -> int:
        if self._last is None:
            self._last = max(round_log.read(self.path), default=0)
        return self._last

    # -- beside the rounds ---------------------------------------------------------------------------------------------

    def event(self, kind: str, **fields: Any) -> None:
        """Append a line to `events.jsonl`: time, kind, fence and the fields."""
        with self._locked("write events.jsonl"):
            self._event(kind, **fields)

    def _event(self, kind: str, **fields: Any) -> None:
        line = json_bytes({"time": now(), "kind": kind, "fence": self.fence, **fields})
        fd = os.open(self.path / "events.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            end = os.lseek(fd, 0, os.SEEK_END)
            torn = end > 0 and os.pread(fd, 1, end - 1) != b"\n"
            write_all(fd, b"\n" + line if torn else line)
        finally:
            os.close(fd)

    def state(self, **fields: Any) -> None:
        """Replace `state.json`, the live status: the fields, and run, pid, host and time."""
        with self._locked("write state.json"):
            whole = {"run": self.run_id, **fields, "pid": os.getpid(), "host": socket.gethostname(), "time": now()}
            durable_write(self.path / "state.json", json_bytes(whole, 1), sync=False)

    def set_config(self, config: Mapping[str, Any]) -> None:
        """Rewrite `config.yaml`."""
        with self._locked("write config.yaml"):
            durable_write(self.path / "config.yaml", yaml_bytes(config))

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """End the run: compact the rows, write `summary.json` (completed from config and rows), free the lock."""
        with self._locked("finish the run"):
            config, found = self.config, round_log.compact(self.path)
            method = config.get("method")
            known: dict[str, Any] = {
                "status": status,
                "rounds": max(found, default=0),
                "wall_s": None,
                "method": method.get("name") if isinstance(method, Mapping) else method,
                "seed": config.get("seed"),
                "executor": (config.get("resources") or {}).get("executor"),
                "versions": versions(),
                "metrics": outcome(list(found.values())),
                "notes": [],
            }
            durable_write(self.path / "summary.json", json_bytes({**known, **summary, "status": status}, 1))
            self._event("finished", status=status, rounds=known["rounds"])
            self._release()
        self.upload(plain=True)

    def close(self) -> None:
        """Give the run up (ended or not) while this process lives on: another one may resume it. Repeatable."""
        with contextlib.suppress(Fenced):
            with self._locked("free the lock"):
                self._release()
            self.upload()

    def upload(self, plain: bool = False) -> None:
        """Commit the folder as it is to object storage, if it is stored there. Errors as `rayfed.storage.object_store.Mirror.push`."""
        if self._mirror is None:
            self._mirror = object_store.of(self.path) or False
        if self._mirror:
            self._mirror.push(self.fence, plain=plain)

    def _release(self) -> None:
        durable_write(self.path / "lock.json", json_bytes({**self._lock(), "owner": None}))

    # -- the lock ------------------------------------------------------------------------------------------------------

    def _lock(self) -> dict[str, Any]:
        with open(f"{self.path}/lock.json", "rb", buffering=0) as f:
            return json.loads(f.read())

    @contextlib.contextmanager
    def _locked(self, doing: str, failure: type[RayfedError] = RunFailed, check: bool = True) -> Iterator[None]:
        """Alone with the folder, on this machine and on file systems that pass locks on; OSErrors become sentences."""
        try:
            fd = os.open(f"{self.path}/.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _flock(fd, self.path)
                if check and (fence := int(self._lock()["fence"])) != self.fence:
                    raise Fenced(
                        f"{self.path} has been taken over by another process (its fence is {fence}, this writer's "
                        f"{self.fence}); nothing was written"
                    )
                yield
            finally:
                os.close(fd)  # frees the lock, as does the end of the process
        except OSError as error:
            where = error.filename or self.path
            raise failure(
                f"cannot {doing}: {where}: {why(error, self.path)}. The rows and snapshots written before stay valid"
            ) from error


_snapshots = snapshots  # `commit` has an argument of that name


def _flock(fd: int, path: Path) -> None:
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise RunFailed(f"{path} has been locked by another writer for {LOCK_WAIT_S:.0f} s") from None
            time.sleep(0.005)


def _must_be_run(path: Path) -> None:
    for name in ("config.yaml", "lock.json"):
        if not (path / name).is_file():
            if path.is_dir():
                raise ConfigError(f"{path} is not a run folder: it has no {name}")
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise ConfigError(f"there is no run folder {path}{nearest(path.name, near)}")
