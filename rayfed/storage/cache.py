"""The user's cache: what can be made again, and is kept because that takes its time."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "RAYFED_CACHE"


def cache_folder() -> Path:
    """Return $RAYFED_CACHE, by default ~/.cache/rayfed."""
    return Path(os.environ.get(CACHE) or "~/.cache/rayfed").expanduser()
