"""Tiny transformers of texts and of images, and a cache for the tests of a file."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def places(spread_places: dict[str, Path]) -> dict[str, Path]:
    """Model folders, a ViT among them."""
    return spread_places


@pytest.fixture(scope="module", autouse=True)
def own_cache(file_cache: None) -> None:
    """The cache of this file's tests."""
