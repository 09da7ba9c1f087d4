"""`rayfed init`: a folder with a config, data, a model and a method that run as they are, to be filled with one's own."""

from __future__ import annotations

from pathlib import Path

from rayfed.errors import ConfigError, RunFailed
from rayfed.launch.config_schema import with_schema
from rayfed.storage.atomic import os_error_text

PROJECT = Path(__file__).parent / "project"
FILES = ("config.yaml", "data.py", "model.py", "method.py")


def write_project(folder: Path) -> list[Path]:
    """Write the files of a new project into a folder, which is made where it is missing, and return them.

    ConfigError where one of them is there already: nothing is overwritten; RunFailed where the disk does not take them.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"init: {folder} is a file; name a folder")
    if there := [name for name in FILES if (folder / name).exists()]:
        raise ConfigError(f"init: {folder} has {', '.join(there)} already; nothing is overwritten, name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            text = (PROJECT / name).read_text(encoding="utf-8")
            (folder / name).write_text(with_schema(text), encoding="utf-8")
    except OSError as error:
        raise RunFailed(f"init: cannot write {error.filename or folder}: {os_error_text(error, folder)}") from error
    return [folder / name for name in FILES]
