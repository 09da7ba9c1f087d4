"""What nobody needs any more: folders that killed processes left, runs that ended before their first round, the cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rayfed.storage import round_log
from rayfed.storage.atomic import remove
from rayfed.storage.cache import cache_folder
from rayfed.storage.listing import list_runs
from rayfed.storage.temporary import abandoned

CACHED = {  # folders of the cache whose files are made again when they are needed
    "compiled": "compiled steps",
    "tokens": "texts as tokens",
    "checked": "models that were tried",
}
OVER = ("failed", "interrupted", "stopped")


class Leftover(NamedTuple):
    """Something that can be deleted: where it is, what it is, and its size in bytes."""

    path: Path
    what: str
    bytes: int


def find_leftovers(runs: Path, cache: bool = False) -> list[Leftover]:
    """Return what can be deleted of a folder of run folders; cache: also of the user's cache.

    A run, a study or a sweep counts only where no round of it was committed and no process works on it; one of another machine,
    which cannot be looked up, does not.
    """
    found = [*_abandoned(runs), *_without_rounds(runs)]
    found += [(cache_folder() / name, what) for name, what in CACHED.items()] if cache else []
    return [Leftover(path, what, size(path)) for path, what in found if path.exists()]


def delete(leftovers: Sequence[Leftover]) -> list[Leftover]:
    """Delete leftovers and return those that are still there, in whole or in part."""
    for found in leftovers:
        remove(found.path)
    return [found for found in leftovers if found.path.exists()]


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.lstat().st_size
    files = (Path(where) / name for where, _, names in os.walk(path) for name in names)
    return sum(_bytes(file) for file in files)


def _bytes(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:  # gone meanwhile
        return 0


def _abandoned(runs: Path) -> Iterator[tuple[Path, str]]:
    folders = [runs, *(p for p in sorted(runs.iterdir()) if p.is_dir())] if runs.is_dir() else []
    for folder in folders:
        yield from ((path, "left by a process that was killed") for path in abandoned(folder))


def _without_rounds(runs: Path) -> Iterator[tuple[Path, str]]:
    for entry in list_runs(runs):
        status = str(entry["status"])
        if entry["round"] == 0 and status.split()[0] in OVER and not _has_rows(Path(entry["path"])):
            yield Path(entry["path"]), f"{entry['kind']} that ended before its first round ({status.split()[0]})"


def _has_rows(path: Path) -> bool:
    """Return whether a round was committed, whatever the live status says, which may be behind."""
    return any(round_log.read(config.parent) for config in path.rglob("config.yaml"))
