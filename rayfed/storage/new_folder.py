"""New folders of runs, studies and sweeps: their names, and their creation in one step."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from rayfed.errors import ConfigError
from rayfed.storage import object_store
from rayfed.storage.atomic import durable_write, os_error_text, sync_dir
from rayfed.storage.temporary import sweep, temporary


def new_id(name: str) -> str:
    """Return `NAME-20261121-153000-ab12`: sorts by time, is unique, and is a file name."""
    safe = re.sub(r"[^A-Za-z0-9_.+=-]+", "-", name).lstrip(".") or "run"
    return f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def new_folder(
    path: Path, name: str, files: Mapping[str, str | bytes], *, run_id: str | None = None, stored: str | None = None
) -> Path:
    """Create `PATH/NAME-ID` with `files` in one step and return it.

    run_id: instead of a new NAME-ID; stored: the URI under which the folder's parent is stored. ConfigError if it cannot be
    written.
    """
    run_id = run_id or new_id(name)
    return create_folder(Path(path) / run_id, {**files, **pointer_file(stored, run_id)})


def pointer_file(stored: str | None, *inner: str) -> dict[str, str | bytes]:
    """Return the file that says where a folder is stored, as name -> content; nothing without `stored`."""
    if not stored:
        return {}
    return {object_store.POINTER: object_store.pointer_bytes(object_store.join_uri(stored, *inner))}


def create_folder(target: Path, files: Mapping[str, str | bytes]) -> Path:
    """Create a folder with files in one step and return it. ConfigError if it exists or cannot be written."""
    path, hidden = target.parent, temporary(target.parent, "new")
    try:
        path.mkdir(parents=True, exist_ok=True)
        sweep(path)
        hidden.mkdir()
        for file, content in files.items():
            (hidden / file).parent.mkdir(exist_ok=True)
            durable_write(hidden / file, content.encode() if isinstance(content, str) else content)
        if target.exists():
            raise ConfigError(f"{target} exists already; continue it with: rayfed resume {target}")
        os.rename(hidden, target)
        sync_dir(path)
    except (OSError, UnicodeEncodeError) as error:  # the latter: a name under a locale that does not have its letters
        said = os_error_text(error, path) if isinstance(error, OSError) else str(error)
        text = f"storage.path: cannot make a run folder in {path}: {said}"
        raise ConfigError(f"{text}. Choose another folder with --out DIR") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return target
