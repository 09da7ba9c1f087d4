"""Runs in object storage: a run is written to a folder on this machine, and every commit is uploaded.

An object that a manifest names is never overwritten: changed files get new keys, and the manifest
`manifest-FENCE-SEQUENCE.json`, itself a new object and written last, is the commit. The newest complete manifest counts, so
that a write that is lost, doubled or torn changes nothing. The files of a run that has ended have their plain names.
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
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

from rayfed.errors import ConfigError, Fenced, RayfedError, RunFailed, nearest
from rayfed.storage.atomic import Sum, durable_write, remove, sync_dir
from rayfed.storage.cache import cache_folder
from rayfed.storage.owner import Owner
from rayfed.storage.provenance import read_settings
from rayfed.storage.study_folder import study_runs
from rayfed.storage.temporary import sweep, temporary
from rayfed.storage.text_files import json_bytes, load_json, sealed_bytes

POINTER = "remote.json"  # in the local folder: the URI under which it is stored
VERSIONS = "versions"  # prefix of keys of files whose plain name is in use
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file", "mock")
MANIFEST = re.compile(r"manifest-(\d{6})-(\d{8})\.json")
TRIES = 4
WAIT_S = 0.5  # before the second try; doubles
BLOCK = 4 << 20  # bytes read at a time
MAX_PIECES = 100  # of a growing file
T = TypeVar("T")


# -- URIs --------------------------------------------------------------------------------------------------------------


def is_uri(where: str | Path) -> bool:
    """Return whether this names a place in a file system that pyarrow reaches (`s3://bucket/x`), not a local path."""
    return "://" in str(where)


def uri_problem(where: str) -> str | None:
    """Return what is wrong with the text of a URI, None if nothing is; contacts nothing."""
    scheme, _, rest = where.partition("://")
    if scheme not in SCHEMES:
        known = ", ".join(f"{s}://" for s in SCHEMES if s != "mock")
        return (
            f"{where!r} found: unknown scheme {scheme}://{nearest(scheme, SCHEMES)}; allowed: a local path, or {known}"
        )
    return None if rest.strip("/") else f"{where!r} found: the place is missing, e.g. {scheme}://bucket/runs"


def join_uri(uri: str, *parts: str) -> str:
    """Join a URI and names: `s3://b/x?region=y`, `run` -> `s3://b/x/run?region=y`."""
    place, mark, query = uri.partition("?")
    return "/".join([place.rstrip("/"), *parts]) + mark + query


def open_filesystem(uri: str) -> tuple[Any, str]:
    """Return (pyarrow file system, path in it). ConfigError naming storage.path if it cannot be opened."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        found, base = fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as e:
        raise ConfigError(f"storage.path: {uri!r} cannot be opened: {e}") from None
    return found, base.rstrip("/")


def runs_cache() -> Path:
    """Return the local folder of runs that are stored in object storage."""
    return cache_folder() / "runs"


def local_folder(where: str | Path) -> tuple[Path, str | None]:
    """Return the folder to write runs in, and the URI to upload them to if `where` is one. ConfigError if that is not writable."""
    if not is_uri(where):
        return Path(where), None
    uri = str(where)
    if problem := uri_problem(uri):
        raise ConfigError(f"storage.path: {problem}")
    fs, base = open_filesystem(uri)
    key = f"{base}/probe-{secrets.token_hex(4)}"
    try:
        _put(fs, key, [b"rayfed"], 6)
        fs.delete_file(key)
    except (OSError, RayfedError) as e:
        raise ConfigError(f"storage.path: nothing can be written to {uri!r}: {e}") from None
    return runs_cache(), uri


def pointer_bytes(uri: str) -> bytes:
    """Return the content of `remote.json`."""
    return sealed_bytes({"uri": uri})


def mirror_of(folder: Path) -> Mirror | None:
    """Return the mirror of a local folder; None if it is not stored in object storage. ConfigError if its pointer is damaged."""
    file = folder / POINTER
    if not file.exists():
        return None
    try:
        return Mirror(folder, str(load_json(file)["uri"]))
    except (OSError, ValueError, KeyError) as e:
        raise ConfigError(
            f"{file} is damaged: {e}; it says where the run is stored. Resume it by its URI, or remove the file to go on without"
        ) from None


# -- upload ------------------------------------------------------------------------------------------------------------


class Mirror:
    """The folder of a run, a study or a sweep and its copy in object storage."""

    def __init__(self, folder: Path, uri: str):
        self.folder, self.uri = folder, uri
        self.fs, self.base = open_filesystem(uri)
        self._known: dict[str, tuple[tuple[int, int], int]] = {}  # file -> (size, mtime), crc

    def push(self, fence: int, *, plain: bool = False) -> None:
        """Commit the folder: upload what has changed, then the manifest.

        plain: give every file its plain name, at the end of a run. Fenced if a later writer has committed there; RunFailed if
        the storage does not take it (its last commit stays valid).
        """
        try:
            self._push(fence, plain)
            if plain:  # plain names that the previous commit used are free now
                self._push(fence, plain)
        except OSError as e:
            raise RunFailed(
                f"storage.path: cannot upload to {self.uri}: {e}. What was uploaded before stays valid, and {self.folder} "
                f"holds everything; continue with: rayfed resume {self.folder}"
            ) from e

    def _push(self, fence: int, plain: bool) -> None:
        last = newest_manifest(self.fs, self.base)
        if last and last["fence"] > fence:
            raise Fenced(
                f"{self.uri} has been taken over by another process (its fence is {last['fence']}, this writer's {fence}); "
                "nothing was uploaded"
            )
        before: dict[str, Any] = last["files"] if last else {}
        sequence = last["sequence"] + 1 if last else 1
        in_use = {key for f in before.values() for key, _ in f["pieces"]}
        version = f"{fence:06d}-{sequence:08d}"
        files = {}
        for path in self._files():
            name = path.relative_to(self.folder).as_posix()
            try:
                file = open(path, "rb")  # what it holds now: rounds that go on may replace it or append to it  # noqa: SIM115
            except FileNotFoundError:  # nothing needs it any more
                continue
            with file:
                files[name] = self._upload(name, file, before.get(name), in_use, version, plain)
        if last and files == before and last["fence"] == fence:
            return
        body = {"fence": fence, "sequence": sequence, "time": time.time(), "files": files}
        data = json_bytes({"crc32": _crc_of(body), "manifest": body})
        _put(self.fs, f"{self.base}/manifest-{version}.json", [data], len(data))
        self._clean(in_use - {key for f in files.values() for key, _ in f["pieces"]}, fence, sequence)

    def _files(self) -> Iterator[Path]:
        """Yield the folder's files without hidden ones and, in a study or a sweep, without the runs, which have mirrors of their own.

        Rows come first: what a row leads to was written before it, and rounds go on meanwhile.
        """
        first = sorted((self.folder / "parts").glob("rows-*"))
        yield from first
        for at, dirs, names in os.walk(self.folder):
            here = Path(at)
            dirs[:] = sorted(d for d in dirs if not d.startswith(".") and not (here / d / POINTER).is_file())
            found = (here / n for n in sorted(names) if not n.startswith(".") and n != POINTER)
            yield from (path for path in found if path not in first)

    def _upload(
        self, name: str, file: BinaryIO, old: Mapping[str, Any] | None, in_use: set[str], version: str, plain: bool
    ) -> dict[str, Any]:
        """Upload a file if it is new or changed, and return its entry in the manifest.

        old: its entry in the last manifest; in_use: keys that this manifest names; version: of the new manifest.
        """
        stat = os.fstat(file.fileno())
        size, mark = stat.st_size, (stat.st_size, stat.st_mtime_ns)
        known = self._known.get(name)
        crc = known[1] if known and known[0] == mark else _crc(file, size)
        self._known[name] = (mark, crc)
        if old is not None and (old["size"], old["crc32"]) == (size, crc):
            if not plain or old["pieces"] == [[name, size]]:
                return dict(old)
            old = None  # unchanged, but not yet under its plain name
        pieces, start = [], 0
        if old is not None and not plain and _has_grown(name, file, old, size):  # a commit sends only the new lines
            pieces, start = list(old["pieces"]), old["size"]
        key = name if not start and name not in in_use else f"{VERSIONS}/{version}-{quote(name, safe='')}"
        _put(self.fs, f"{self.base}/{key}", lambda: _blocks(file, start, size), size - start)
        return {"size": size, "crc32": crc, "pieces": [*pieces, [key, size - start]]}

    def _clean(self, unused: set[str], fence: int, sequence: int) -> None:
        """Delete objects that no manifest names any more. What cannot be deleted stays, which does no harm."""
        try:
            last = newest_manifest(self.fs, self.base)
            if not last or (last["fence"], last["sequence"]) != (fence, sequence):
                return  # another writer has taken over
            for key in sorted(unused):
                self.fs.delete_file(f"{self.base}/{key}")
            for older in _manifests(self.fs, self.base)[1:]:
                self.fs.delete_file(older)
        except OSError:
            pass


def _has_grown(name: str, file: BinaryIO, old: Mapping[str, Any], size: int) -> bool:
    """Return whether a file (rows, events) begins with what is stored of it."""
    grown = name.endswith(".jsonl") and 0 < old["size"] < size and len(old["pieces"]) < MAX_PIECES
    return grown and _crc(file, old["size"]) == old["crc32"]


def _blocks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes of a file from `start` to `end`."""
    file.seek(start)
    while start < end and (block := file.read(min(BLOCK, end - start))):
        start += len(block)
        yield block


def _crc(file: BinaryIO, end: int) -> int:
    """Return the checksum of a file's first `end` bytes."""
    crc = 0
    for block in _blocks(file, 0, end):
        crc = zlib.crc32(block, crc)
    return crc


def _crc_of(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def _retry(do: Callable[[], T]) -> T:
    """Call a function again if the network fails: TRIES times, with growing pauses."""
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
    """Write an object and check that all of it is there. OSError if it is not."""
    from pyarrow.fs import FileType

    def once() -> None:
        try:
            stream = fs.open_output_stream(key, compression=None)
        except FileNotFoundError:  # a file system that has folders
            fs.create_dir(key.rpartition("/")[0], recursive=True)
            stream = fs.open_output_stream(key, compression=None)
        with stream:
            for block in content() if callable(content) else content:
                stream.write(block)
        info = fs.get_file_info(key)
        if info.type != FileType.File or info.size != size:
            raise OSError(f"{key} was written, but is not there completely")

    _retry(once)


# -- download ----------------------------------------------------------------------------------------------------------


def _manifests(fs: Any, base: str) -> list[str]:
    """Return the keys of the manifests, newest first."""
    from pyarrow.fs import FileSelector

    found = fs.get_file_info(FileSelector(base, allow_not_found=True))
    return sorted((i.path for i in found if MANIFEST.fullmatch(i.base_name)), reverse=True)


def newest_manifest(fs: Any, base: str) -> dict[str, Any] | None:
    """Return the last commit: fence, sequence and files; None if there is none. OSError if the storage does not answer."""
    for key in _retry(lambda: _manifests(fs, base)):
        try:
            with fs.open_input_stream(key, compression=None) as f:
                read = json.loads(f.read())
            if read["crc32"] == _crc_of(read["manifest"]):
                return read["manifest"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # torn, or deleted after a newer one was written
    return None


class DamagedObject(OSError):
    """An object is not what a manifest says."""


def download(uri: str, target: Path | None = None, *, strict: bool = True) -> Path:
    """Download a run, a study or a sweep into a folder, completely or not at all, and return the folder.

    target: by default the folder in which it is continued; strict: whether a damaged object is an error, or comes as it is, since
    whoever resumes the run looks at every file of it. ConfigError if there is none, or if the folder is in use; RunFailed
    if an object is damaged.
    """
    uri = uri.rstrip("/")
    if problem := uri_problem(uri):
        raise ConfigError(problem)
    name = uri.partition("?")[0].rpartition("/")[2]
    target = target or runs_cache() / name
    _restore(uri, target, strict)
    if (target / "study.yaml").is_file():
        for arm, seed, where in study_runs(target, read_settings(target, "study.yaml")):
            run = join_uri(uri, arm, f"seed-{seed}")
            if newest_manifest(*open_filesystem(run)):
                _restore(run, where, strict)
    if (target / "sweep.yaml").is_file():
        for inner in _stored_trials(uri):
            _restore(join_uri(uri, *inner), target.joinpath(*inner), strict)
    return target


def _stored_trials(uri: str) -> list[tuple[str, ...]]:
    """Return where the runs of a sweep's trials are below it, ("trials", "00003", "seed-0")."""
    from pyarrow.fs import FileSelector

    fs, base = open_filesystem(uri)
    where = FileSelector(f"{base}/trials", recursive=True, allow_not_found=True)
    found = [i.path for i in _retry(lambda: fs.get_file_info(where)) if MANIFEST.fullmatch(i.base_name)]
    return sorted({tuple(p.removeprefix(f"{base}/").split("/")[:-1]) for p in found})


def _restore(uri: str, target: Path, strict: bool) -> None:
    """Download one folder, without the runs of a study or a sweep, which it keeps. Arguments as in `download`."""
    fs, base = open_filesystem(uri)
    try:
        manifest = newest_manifest(fs, base)
        if manifest is None:
            torn = [key.rpartition("/")[2] for key in _manifests(fs, base)]
            raise ConfigError(
                f"{uri}: {', '.join(torn)} is damaged, and without it nothing says which objects are the run; its folder on the "
                f"machine where it ran, by default below {runs_cache()}, can be resumed"
                if torn
                else f"{uri}: there is no run (it would hold a manifest-*.json)"
            )
        check_unused(target)
        hidden = temporary(target.parent, "new")
        try:
            hidden.mkdir(parents=True)
            sweep(target.parent)
            for name, entry in manifest["files"].items():
                try:
                    _get(fs, base, name, entry, target, hidden, uri)
                except (DamagedObject, FileNotFoundError) as e:
                    if strict:
                        raise
                    if isinstance(e, FileNotFoundError):
                        remove(hidden / name)
            durable_write(hidden / POINTER, pointer_bytes(uri))
            for run in _inner_runs(target):
                kept = hidden / run.relative_to(target)
                if not kept.exists():
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    os.rename(run, kept)
            if target.exists():
                old = temporary(target.parent, "old")
                os.rename(target, old)
                remove(old)
            os.rename(hidden, target)
            sync_dir(target.parent)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError as e:
        raise RunFailed(f"cannot download {uri} to {target}: {e}") from e


def _inner_runs(folder: Path) -> list[Path]:
    """Return the run folders in a study or a sweep."""
    depths = ("*/seed-*", "trials/*/seed-*", "trials/*/clone-*/seed-*")
    return [p for depth in depths for p in folder.glob(depth) if p.parent != folder / "trials"]


def check_unused(target: Path) -> None:
    """Check that no other process of this machine writes to a folder. ConfigError if one does."""
    for folder in (target, *_inner_runs(target)):
        try:
            owner = Owner.read(load_json(folder / "lock.json").get("owner"))
        except FileNotFoundError:
            continue
        except ValueError as e:
            raise ConfigError(
                f"{folder}/lock.json is damaged: {e}. Whether a process writes there cannot be seen: if none does, remove {folder}"
            ) from None
        if owner and owner.here() and owner.alive() and owner.pid != os.getpid():
            raise ConfigError(f"{folder} is being written by {owner}, which still runs; stop it first")


def _get(fs: Any, base: str, name: str, entry: Mapping[str, Any], old: Path, new: Path, uri: str) -> None:
    """Put one file into the folder `new`, checked; copied from the folder `old` if that has it."""
    goal, present = new / name, old / name
    if not goal.resolve().is_relative_to(new.resolve()):
        raise RunFailed(f"{uri}: {name!r} in its manifest leads out of the run")
    goal.parent.mkdir(parents=True, exist_ok=True)
    wanted = Sum(entry["size"], entry["crc32"])
    if wanted.damage(present) is None:
        shutil.copyfile(present, goal)
        return

    def once() -> None:
        with open(goal, "wb") as out:
            for key, _ in entry["pieces"]:
                with fs.open_input_stream(f"{base}/{key}", compression=None) as f:
                    while block := f.read(BLOCK):
                        out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if wanted.damage(goal):
            raise DamagedObject(f"{name} is damaged in {uri}")

    _retry(once)
