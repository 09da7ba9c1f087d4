"""Every test of a pretrained model has an empty cache."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def own_cache(fresh_cache: None) -> None:
    """The cache of this test alone."""
