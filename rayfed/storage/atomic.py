"""Files that are there completely or not at all, and what goes into them."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


def write_all(fd: int, data: Any) -> None:
    """Write every byte of a buffer; OSError if the disk does not take it."""
    view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
    while view:
        view = view[os.write(fd, view) :]


def sync_dir(path: Path) -> None:
    """Make names created, renamed or removed in a folder durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(fd)


def durable_write(path: Path, *parts: Any, sync: bool = True) -> None:
    """Put `parts` (bytes-like) into `path` in one step: a reader sees the old file or the new one, also after a crash.

    `sync=False` leaves out the wait for the disk (live status, which may be lost). OSError leaves the old file.
    """
    hidden = path.parent / f".{path.name}.{os.getpid()}"
    try:
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for part in parts:
                write_all(fd, part)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(hidden, path)
    except OSError:
        remove(hidden)
        raise
    if sync:
        sync_dir(path.parent)


def remove(path: Path) -> None:
    """Delete a file or folder if that is possible."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        pass


def sweep(folder: Path) -> None:
    """Delete what a killed writer left behind: names that start with a dot, except `.lock` and `.damaged-...`."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.name.startswith(".") and entry.name != ".lock" and not entry.name.startswith(".damaged-"):
                remove(entry)


def why(error: OSError, path: Path) -> str:
    """An OSError in words, with the free space if that may be the cause."""
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        while not path.exists() and path != path.parent:
            path = path.parent
        with contextlib.suppress(OSError):
            text += f" ({shutil.disk_usage(path).free / 1e6:,.1f} MB free there)"
    return text


# -- text -------------------------------------------------------------------------------------------------------------


def now() -> str:
    """The time as in events and states: UTC, ISO 8601, milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """Only what JSON and safe YAML hold: tuples and sets become lists, NumPy scalars numbers, paths text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """Strict JSON: NaN and infinities, which it lacks, become null."""

    def finite(v: Any) -> Any:
        if isinstance(v, dict):
            return {k: finite(x) for k, x in v.items()}
        if isinstance(v, list):
            return [finite(x) for x in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    return json.dumps(finite(plain(value)), indent=indent, ensure_ascii=False).encode() + b"\n"


def yaml_bytes(value: Mapping[str, Any]) -> bytes:
    import yaml

    return yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=120).encode()


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; {} if the file is empty. ValueError where it is none."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load(Path(path).read_text(), Loader=loader) or {}
    except yaml.YAMLError as e:
        raise ValueError(f"{path}: {e}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {type(found).__name__} found, a mapping is needed")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} if the file is not there or not whole."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
