"""Snapshots of a run: a folder counts only if its `manifest.json`, written last, agrees with every file in it.

So do the segments of client states that its `segments.json` names. Temporary folders begin with a dot.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rayfed.storage.atomic import Sum, durable_write, make_folder, remove, set_aside, sync_dir, sync_file
from rayfed.storage.text_files import load_json, sealed_bytes

SEGMENTS = "segments.json"  # in a snapshot: segment -> its file's size and checksum


def folder_name(round: int) -> str:
    """Return the name of a round's snapshot."""
    return f"round-{round:06d}"


def fill(snapshots: Path, round: int, fence: int, write: Callable[[Path], None]) -> Path:
    """Let `write` write a snapshot into a hidden folder, which is returned; `seal` makes it last."""
    make_folder(snapshots)
    hidden = snapshots / f".{folder_name(round)}-{fence}"
    remove(hidden)
    hidden.mkdir()
    try:
        write(hidden)
    except BaseException:
        remove(hidden)
        raise
    return hidden


def seal(hidden: Path, round: int, fence: int) -> None:
    """Wait until a filled folder and its segments of client states are on the disk, and add the manifest. OSError removes the folder."""
    try:
        first, _, last = segment_name(round, fence).rpartition("-")
        names = [n for n in read_segments(hidden) if n.startswith(f"{first}-") and n.endswith(f"-{last}")]
        for segment in [segment_file(hidden, n) for n in names]:
            sync_file(segment)
            sync_dir(segment.parent)
        files = {}
        for path in sorted(hidden.rglob("*")):
            if path.is_dir():
                sync_dir(path)
            else:
                sync_file(path)
                files[path.relative_to(hidden).as_posix()] = Sum.of_file(path)._asdict()
        manifest = {"fence": fence, "round": round, "rows": round, "time": time.time(), "files": files}
        durable_write(hidden / "manifest.json", sealed_bytes(manifest, 1))
    except OSError:
        remove(hidden)
        raise


def publish(hidden: Path, round: int) -> Path:
    """Rename a staged folder to `round-000005`: this is the commit. Returns the snapshot."""
    target = hidden.parent / folder_name(round)
    if target.exists():  # only a snapshot that a rewind found damaged can be here
        set_aside(target)
    os.replace(hidden, target)
    sync_dir(hidden.parent)
    return target


def list_snapshots(snapshots: Path) -> list[tuple[int, Path]]:
    """Return (round, folder) of everything named like a snapshot, newest first."""
    found = []
    for path in snapshots.glob("round-*") if snapshots.is_dir() else ():
        digits = path.name.removeprefix("round-")
        if digits.isdigit():
            found.append((int(digits), path))
    return sorted(found, reverse=True)


def write_segments(snapshot: Path, sums: Mapping[str, Sum]) -> None:
    """Write which segments a snapshot that is being filled leads to, and their sums."""
    (snapshot / SEGMENTS).write_text(json.dumps(dict(sums)), encoding="utf-8")


def read_segments(snapshot: Path) -> dict[str, Sum]:
    """Return the segments that a snapshot leads to, and their sums. OSError or ValueError if they cannot be read."""
    try:
        found = json.loads((snapshot / SEGMENTS).read_bytes())
    except FileNotFoundError:
        return {}
    return {str(name): Sum.read(value) for name, value in found.items()}


def segment_name(round: int, fence: int) -> str:
    """Return the name of the segment of client states that a writer's snapshot of a round adds."""
    return f"{folder_name(round)}-{fence}"


def nth_segment(name: str, number: int) -> str:
    """Return the name of a segment where a snapshot adds several: number 0 is round-000005-3, number 1 round-000005-f1-3."""
    first, _, fence = name.rpartition("-")
    return f"{first}-f{number}-{fence}" if number else name


def segment_file(snapshot: Path, name: str) -> Path:
    """Return the file of a segment that a run's snapshot names."""
    return snapshot.parent.parent / "segments" / f"{name}.safetensors"


def damaged_segments(path: Path) -> dict[Path, str]:
    """Return file -> what is wrong with it for each damaged segment that a snapshot leads to; empty where it does not say which."""
    try:
        named = read_segments(path)
    except (OSError, ValueError, AttributeError):
        return {}
    files = ((segment_file(path, name), wanted) for name, wanted in named.items())
    return {file: damage for file, wanted in files if (damage := wanted.damage(file))}


def find_damage(path: Path, round: int) -> str | None:
    """Return what is wrong with a snapshot, None if every file that it leads to has the size and checksum that it should have."""
    try:
        manifest = load_json(path / "manifest.json")
        if manifest["round"] != round:
            return f"its manifest is of round {manifest['round']}"
        for name, wanted in manifest["files"].items():
            if damage := Sum(wanted["size"], wanted["crc32"]).damage(path / name):
                return f"{name}: {damage}"
        read_segments(path)
    except FileNotFoundError:
        return "it has no manifest.json"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {error}"
    return next((f"segments/{file.name}: {damage}" for file, damage in damaged_segments(path).items()), None)


def prune(snapshots: Path, keep: int) -> None:
    """Delete all but the newest `keep` (at least one) snapshots. What cannot be deleted stays, which does no harm."""
    for _, path in list_snapshots(snapshots)[max(1, keep) :]:
        hidden = snapshots / f".old-{path.name}"
        try:
            os.replace(path, hidden)  # hidden first: a half deleted folder must not look like a snapshot
        except OSError:
            continue
        remove(hidden)


def collect_segments(snapshots: Path, segments: Path) -> None:
    """Delete segments that no kept snapshot names; none where one of these does not say which it names."""
    if not segments.is_dir():
        return
    try:
        used = {s for _, path in list_snapshots(snapshots) for s in read_segments(path)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    for f in segments.glob("round-*.safetensors"):
        if f.stem not in used:
            f.unlink(missing_ok=True)
