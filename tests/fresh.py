"""Property tests draw the same cases every time, or so many new ones as RAYFED_FRESH_CASES says."""

from __future__ import annotations

import os

from hypothesis import settings

FRESH = int(os.environ.get("RAYFED_FRESH_CASES", 0))


def many(quick: settings, usual: int) -> settings:
    """Return the settings of a slow property test: `usual` cases that are always the same, or new ones."""
    return settings(quick, max_examples=FRESH or usual, derandomize=not FRESH)
