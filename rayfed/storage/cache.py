"""The user's cache: files that can be made again, kept because making them takes time."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "RAYFED_CACHE"


def cache_folder() -> Path:
    """Return $RAYFED_CACHE, by default ~/.cache/rayfed."""
    return Path(os.environ.get(CACHE) or "~/.cache/rayfed").expanduser()
