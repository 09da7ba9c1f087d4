"""A user's own function: `path/to/file.py:function`, called as function(seed, **options)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.data import Dataset
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rayfed.config import Named


def function(name: str, setting: str) -> Any:
    """The callable behind path/to/file.py:function. ConfigError naming what is missing."""
    from rayfed.methods import load_file

    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(f"{setting}: file {file!r} does not exist")
    try:
        module = load_file(path)
    except Exception as e:
        raise ConfigError(f"{setting}: {file} cannot be imported: {type(e).__name__}: {e}") from e
    known = [n for n, f in vars(module).items() if callable(f)]
    if attribute not in known:
        raise ConfigError(f"{setting}: {file} has no function {attribute!r}{nearest(attribute, known)}")
    return vars(module)[attribute]


def check(spec: Named) -> list[str]:
    function(spec.name, "task.data")
    return []


def load(spec: Named, seed: int) -> Dataset:
    made = function(spec.name, "task.data")(seed, **spec.options)
    if not isinstance(made, Dataset):
        raise ConfigError(f"task.data: {spec.name} returned {type(made).__name__}, needed: rayfed.data.Dataset")
    return made
