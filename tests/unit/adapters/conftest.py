"""Tiny transformers and texts, and a cache for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayfed.storage import cache
from tests.tiny import make_places, make_vit


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pretrained")
    make_vit(root / "vit")
    return {**make_places(root, spread=0.2), "vit": root / "vit"}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as m:
        m.setenv(cache.CACHE, str(tmp_path_factory.mktemp("cache")))
        yield
