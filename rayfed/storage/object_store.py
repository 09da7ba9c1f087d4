"""Runs on object storage: a run is written to a folder on this machine, and every commit is uploaded.

An object that a manifest names is never overwritten: what changed goes to a new key, and the manifest
`manifest-FENCE-SEQUENCE.json`, itself a new object written last, is the commit. The newest whole one counts, so a write
that is lost, doubled or torn changes nothing. A run that has ended lies under plain names, as it would in a folder.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from rayfed.errors import ConfigError, Fenced, RayfedError, RunFailed, nearest
from rayfed.storage.atomic import durable_write, json_bytes, read_json, read_yaml, remove, sync_dir
from rayfed.storage.cache import cache_folder
from rayfed.storage.owner import Owner
from rayfed.storage.study_folder import study_runs

POINTER = "remote.json"  # in the local folder: where it is stored
VERSIONS = "versions"
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file", "mock")
MANIFEST = re.compile(r"manifest-(\d{6})-(\d{8})\.json")
TRIES = 4
WAIT_S = 0.5  # before the second try; doubles
BLOCK = 4 << 20
T = TypeVar("T")


# -- names -------------------------------------------------------------------------------------------------------------


def is_uri(where: str | Path) -> bool:
    """Whether this names a place in a file system that pyarrow reaches (`s3://bucket/x`), not a local path."""
    return "://" in str(where)


def wrong(where: str) -> str | None:
    """What is wrong with a `storage.path` as text, before anything is contacted."""
    scheme, _, rest = where.partition("://")
    if scheme not in SCHEMES:
        known = ", ".join(f"{s}://" for s in SCHEMES if s != "mock")
        return (
            f"{where!r} found: unknown scheme {scheme}://{nearest(scheme, SCHEMES)}; allowed: a local path, or {known}"
        )
    return None if rest.strip("/") else f"{where!r} found: the place is missing, e.g. {scheme}://bucket/runs"


def join(uri: str, *parts: str) -> str:
    """`s3://b/x?region=y`, `run` -> `s3://b/x/run?region=y`."""
    place, mark, query = uri.partition("?")
    return "/".join([place.rstrip("/"), *parts]) + mark + query


def filesystem(uri: str) -> tuple[Any, str]:
    """(pyarrow file system, path in it). ConfigError naming storage.path where there is no way to it."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        found, base = fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as e:
        raise ConfigError(f"storage.path: {uri!r} cannot be opened: {e}") from None
    return found, base.rstrip("/")


def cache() -> Path:
    """Return the folder of runs while they are written to object storage."""
    return cache_folder() / "runs"


def local(where: str | Path) -> tuple[Path, str | None]:
    """The folder to write runs in, and the URI to which they go if `where` is one. ConfigError if nothing can be written there."""
    if not is_uri(where):
        return Path(where), None
    uri = str(where)
    if text := wrong(uri):
        raise ConfigError(f"storage.path: {text}")
    fs, base = filesystem(uri)
    key = f"{base}/probe-{secrets.token_hex(4)}"
    try:
        _put(fs, key, [b"rayfed"], 6)
        fs.delete_file(key)
    except (OSError, RayfedError) as e:
        raise ConfigError(f"storage.path: nothing can be written to {uri!r}: {e}") from None
    return cache(), uri


def pointer(uri: str) -> bytes:
    """Content of `remote.json`."""
    return json_bytes({"uri": uri})


def of(folder: Path) -> Mirror | None:
    """Where a local folder is stored; None if only here."""
    file = folder / POINTER
    return Mirror(folder, json.loads(file.read_text())["uri"]) if file.is_file() else None


# -- writing -----------------------------------------------------------------------------------------------------------


class Mirror:
    """The folder of a run, a study or a sweep and its place in object storage."""

    def __init__(self, folder: Path, uri: str):
        self.folder, self.uri = folder, uri
        self.fs, self.base = filesystem(uri)
        self._seen: dict[str, tuple[tuple[int, int], int]] = {}  # file -> (size, mtime), crc

    def push(self, fence: int, *, plain: bool = False) -> None:
        """Upload what changed, then the manifest. `plain`: at the end, everything under its own name.

        Fenced if a later writer has committed there; RunFailed if the storage does not take it (its last commit stays valid).
        """
        try:
            self._push(fence, plain)
            if plain:  # names that the commit before this one still used are free by now
                self._push(fence, plain)
        except OSError as e:
            raise RunFailed(
                f"storage.path: cannot upload to {self.uri}: {e}. What was uploaded before stays valid, and {self.folder} "
                f"holds everything; continue with: rayfed resume {self.folder}"
            ) from e

    def _push(self, fence: int, plain: bool) -> None:
        last = newest(self.fs, self.base)
        if last and last["fence"] > fence:
            raise Fenced(
                f"{self.uri} has been taken over by another process (its fence is {last['fence']}, this writer's {fence}); "
                "nothing was uploaded"
            )
        before: dict[str, Any] = last["files"] if last else {}
        sequence = last["sequence"] + 1 if last else 1
        busy = {key for f in before.values() for key, _ in f["pieces"]}
        files = {}
        for path in self._files():
            name = path.relative_to(self.folder).as_posix()
            files[name] = self._file(name, path, before.get(name), busy, f"{fence:06d}-{sequence:08d}", plain)
        if last and files == before and last["fence"] == fence:
            return
        body = {"fence": fence, "sequence": sequence, "time": time.time(), "files": files}
        data = json_bytes({"crc32": _crc_of(body), "manifest": body})
        _put(self.fs, f"{self.base}/manifest-{fence:06d}-{sequence:08d}.json", [data], len(data))
        self._clean(busy - {key for f in files.values() for key, _ in f["pieces"]}, fence, sequence)

    def _files(self) -> Iterator[Path]:
        """Everything of this folder but hidden files and, in a study's or a sweep's, the runs: they are stored by themselves."""
        for at, dirs, names in os.walk(self.folder):
            here = Path(at)
            dirs[:] = sorted(d for d in dirs if not d.startswith(".") and not (here / d / POINTER).is_file())
            yield from (here / n for n in sorted(names) if not n.startswith(".") and n != POINTER)

    def _file(
        self, name: str, path: Path, old: Mapping[str, Any] | None, busy: set[str], version: str, plain: bool
    ) -> dict[str, Any]:
        """The manifest's entry of a file, uploaded if it is new or changed."""
        stat = path.stat()
        size, mark = stat.st_size, (stat.st_size, stat.st_mtime_ns)
        seen = self._seen.get(name)
        crc = seen[1] if seen and seen[0] == mark else _crc(path, size)
        same = old is not None and (old["size"], old["crc32"]) == (size, crc)
        self._seen[name] = (mark, crc)
        if same and old is not None and (not plain or old["pieces"] == [[name, size]]):
            return dict(old)
        grown = old is not None and not same and not plain and path.suffix == ".jsonl" and 0 < old["size"] < size
        if grown and old is not None and len(old["pieces"]) < 100 and _crc(path, old["size"]) == old["crc32"]:
            # Rows and events only grow: a commit sends the new lines.
            pieces, start = list(old["pieces"]), old["size"]
        else:
            pieces, start = [], 0
        key = name if not start and name not in busy else f"{VERSIONS}/{version}-{quote(name, safe='')}"
        _put(self.fs, f"{self.base}/{key}", lambda: _blocks(path, start, size), size - start)
        return {"size": size, "crc32": crc, "pieces": [*pieces, [key, size - start]]}

    def _clean(self, unused: set[str], fence: int, sequence: int) -> None:
        """Delete what no manifest needs any more. What cannot be deleted stays; that harms nothing."""
        try:
            found = newest(self.fs, self.base)
            if not found or (found["fence"], found["sequence"]) != (fence, sequence):
                return  # someone else writes there now
            for key in sorted(unused):
                self.fs.delete_file(f"{self.base}/{key}")
            for was in _manifests(self.fs, self.base)[1:]:
                self.fs.delete_file(was)
        except OSError:
            pass


def _blocks(path: Path, start: int, end: int) -> Iterator[bytes]:
    with open(path, "rb") as f:
        f.seek(start)
        while start < end and (block := f.read(min(BLOCK, end - start))):
            start += len(block)
            yield block


def _crc(path: Path, end: int) -> int:
    crc = 0
    for block in _blocks(path, 0, end):
        crc = zlib.crc32(block, crc)
    return crc


def _crc_of(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def _again(do: Callable[[], T]) -> T:
    """Repeat what a network may lose."""
    for i in range(TRIES):
        try:
            return do()
        except FileNotFoundError:
            raise
        except OSError:
            if i == TRIES - 1:
                raise
            time.sleep(WAIT_S * 2**i)
    raise AssertionError


def _put(fs: Any, key: str, content: Any, size: int) -> None:
    """Write an object and look that it is there, all of it. OSError."""
    from pyarrow.fs import FileType

    def once() -> None:
        try:
            stream = fs.open_output_stream(key, compression=None)
        except FileNotFoundError:  # a file system with real folders
            fs.create_dir(key.rpartition("/")[0], recursive=True)
            stream = fs.open_output_stream(key, compression=None)
        with stream:
            for block in content() if callable(content) else content:
                stream.write(block)
        info = fs.get_file_info(key)
        if info.type != FileType.File or info.size != size:
            raise OSError(f"{key} was written, but is not there whole")

    _again(once)


# -- reading -----------------------------------------------------------------------------------------------------------


def _manifests(fs: Any, base: str) -> list[str]:
    """Keys of the manifests, newest first."""
    from pyarrow.fs import FileSelector

    found = fs.get_file_info(FileSelector(base, allow_not_found=True))
    return sorted((i.path for i in found if MANIFEST.fullmatch(i.base_name)), reverse=True)


def newest(fs: Any, base: str) -> dict[str, Any] | None:
    """The last commit: fence, sequence and files. None if there is none. OSError if the storage does not answer."""
    for key in _again(lambda: _manifests(fs, base)):
        try:
            with fs.open_input_stream(key, compression=None) as f:
                read = json.loads(f.read())
            if read["crc32"] == _crc_of(read["manifest"]):
                return read["manifest"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # torn, or just replaced by a newer one
    return None


def download(uri: str, target: Path | None = None) -> Path:
    """Bring a run, a study or a sweep from object storage into a folder, all of it or nothing: by default to where it is continued.

    ConfigError if there is none, or if the folder is in use; RunFailed if an object is damaged.
    """
    uri = uri.rstrip("/")
    if text := wrong(uri):
        raise ConfigError(text)
    name = uri.partition("?")[0].rpartition("/")[2]
    target = target or cache() / name
    _restore(uri, target)
    if (target / "study.yaml").is_file():
        for arm, seed, where in study_runs(target, read_yaml(target / "study.yaml")):
            one = join(uri, arm, f"seed-{seed}")
            if newest(*filesystem(one)):
                _restore(one, where)
    if (target / "sweep.yaml").is_file():
        for inner in _trials(uri):
            _restore(join(uri, *inner), target.joinpath(*inner))
    return target


def _trials(uri: str) -> list[tuple[str, ...]]:
    """Of a sweep: where its trials' runs lie below it, ("trials", "00003", "seed-0")."""
    from pyarrow.fs import FileSelector

    fs, base = filesystem(uri)
    where = FileSelector(f"{base}/trials", recursive=True, allow_not_found=True)
    found = [i.path for i in _again(lambda: fs.get_file_info(where)) if MANIFEST.fullmatch(i.base_name)]
    return sorted({tuple(p.removeprefix(f"{base}/").split("/")[:-1]) for p in found})


def _restore(uri: str, target: Path) -> None:
    fs, base = filesystem(uri)
    try:
        manifest = newest(fs, base)
        if manifest is None:
            raise ConfigError(f"{uri}: no run lies there (it would hold a manifest-*.json)")
        free(target)
        hidden = target.parent / f".new-{secrets.token_hex(6)}"
        try:
            hidden.mkdir(parents=True)
            for name, entry in manifest["files"].items():
                _get(fs, base, name, entry, target, hidden, uri)
            durable_write(hidden / POINTER, pointer(uri))
            for inner in _runs(target):  # a study's and a sweep's runs come by themselves
                if not (hidden / inner.relative_to(target)).exists():
                    (hidden / inner.relative_to(target)).parent.mkdir(parents=True, exist_ok=True)
                    os.rename(inner, hidden / inner.relative_to(target))
            if target.exists():
                old = target.parent / f".old-{secrets.token_hex(6)}"
                os.rename(target, old)
                remove(old)
            os.rename(hidden, target)
            sync_dir(target.parent)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError as e:
        raise RunFailed(f"cannot bring {uri} to {target}: {e}") from e


def _runs(folder: Path) -> list[Path]:
    """Folders of runs in a study's or a sweep's."""
    depths = ("*/seed-*", "trials/*/seed-*", "trials/*/clone-*/seed-*")
    return [p for depth in depths for p in folder.glob(depth) if p.parent != folder / "trials"]


def free(target: Path) -> None:
    """ConfigError if a process on this machine writes there."""
    for lock in (target / "lock.json", *(run / "lock.json" for run in _runs(target))):
        owner = read_json(lock).get("owner")
        if owner and Owner(**owner).here() and Owner(**owner).alive() and Owner(**owner).pid != os.getpid():
            raise ConfigError(f"{lock.parent} is being written by {Owner(**owner)}, which still runs; stop it first")


def _get(fs: Any, base: str, name: str, entry: Mapping[str, Any], old: Path, new: Path, uri: str) -> None:
    """One file, checked; taken from the old folder where that has it."""
    goal, have = new / name, old / name
    if not goal.resolve().is_relative_to(new.resolve()):
        raise RunFailed(f"{uri}: {name!r} in its manifest leads out of the run")
    goal.parent.mkdir(parents=True, exist_ok=True)
    if have.is_file() and have.stat().st_size == entry["size"] and _crc(have, entry["size"]) == entry["crc32"]:
        shutil.copyfile(have, goal)
        return

    def once() -> None:
        with open(goal, "wb") as out:
            for key, _ in entry["pieces"]:
                with fs.open_input_stream(f"{base}/{key}", compression=None) as f:
                    while block := f.read(BLOCK):
                        out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if goal.stat().st_size != entry["size"] or _crc(goal, entry["size"]) != entry["crc32"]:
            raise OSError(f"{name} is damaged in {uri}")

    _again(once)
