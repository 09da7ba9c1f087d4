"""Tiny transformers and texts, and a cache for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfed.storage import cache
from tests.tiny import make_places


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_places(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
