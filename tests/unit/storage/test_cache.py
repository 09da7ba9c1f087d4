"""The folder of the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfed.storage.cache import CACHE, cache_folder


def test_the_variable_moves_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv(CACHE, "")
    assert cache_folder() == Path("~/.cache/rayfed").expanduser()
