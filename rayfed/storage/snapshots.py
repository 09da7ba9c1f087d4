"""Snapshots of a run: a folder counts only if its `manifest.json`, written last, agrees with every file in it.

Temporary folders begin with a dot.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from rayfed.storage.atomic import durable_write, make_folder, remove, sync_dir


def folder_name(round: int) -> str:
    """Return the name of a round's snapshot."""
    return f"round-{round:06d}"


def stage(snapshots: Path, round: int, fence: int, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write a snapshot into a hidden folder and add the manifest; returns the folder, durable but not yet a snapshot."""
    make_folder(snapshots)
    hidden = snapshots / f".{folder_name(round)}-{fence}"
    remove(hidden)
    hidden.mkdir()
    try:
        fill(hidden)
        files = {}
        for path in sorted(hidden.rglob("*")):
            if path.is_dir():
                sync_dir(path)
            else:
                fd = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(fd)  # the callback may have used plain writes
                finally:
                    os.close(fd)
                files[path.relative_to(hidden).as_posix()] = {"size": path.stat().st_size, "crc32": _crc(path)}
        manifest = {"fence": fence, "round": round, "rows": round, "time": time.time(), "files": files}
        durable_write(hidden / "manifest.json", json.dumps(manifest, indent=1).encode())
    except Exception:
        remove(hidden)
        raise
    return hidden


def publish(hidden: Path, round: int) -> Path:
    """Rename a staged folder to `round-000005`: this is the commit. Returns the snapshot."""
    target = hidden.parent / folder_name(round)
    if target.exists():  # only a snapshot that a rewind found damaged can be here
        set_aside(target)
    os.replace(hidden, target)
    sync_dir(hidden.parent)
    return target


def set_aside(path: Path) -> Path:
    """Rename a snapshot that cannot be used to `.damaged-...`, where its owner can inspect it; returns the new path."""
    aside = path.parent / f".damaged-{path.name}"
    remove(aside)
    os.replace(path, aside)
    return aside


def list_snapshots(snapshots: Path) -> list[tuple[int, Path]]:
    """Return (round, folder) of everything named like a snapshot, newest first."""
    found = []
    for path in snapshots.glob("round-*") if snapshots.is_dir() else ():
        digits = path.name.removeprefix("round-")
        if digits.isdigit():
            found.append((int(digits), path))
    return sorted(found, reverse=True)


def find_damage(path: Path, round: int) -> str | None:
    """Return what is wrong with a snapshot, None if every file has the size and checksum of the manifest."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["round"] != round:
            return f"its manifest is of round {manifest['round']}"
        for name, want in manifest["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != want["size"]:
                return f"{name} has {file.stat().st_size} bytes instead of {want['size']}"
            if _crc(file) != want["crc32"]:
                return f"{name} has a wrong checksum"
    except FileNotFoundError:
        return "it has no manifest.json"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {error}"
    return None


def prune(snapshots: Path, keep: int) -> None:
    """Delete all but the newest `keep` (at least one) snapshots. What cannot be deleted stays, which does no harm."""
    for _, path in list_snapshots(snapshots)[max(1, keep) :]:
        hidden = snapshots / f".old-{path.name}"
        try:
            os.replace(path, hidden)  # hidden first: a half deleted folder must not look like a snapshot
        except OSError:
            continue
        remove(hidden)


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
