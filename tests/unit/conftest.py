"""Fixtures that tests of several packages share: tiny pretrained models, caches, a network of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayfed.storage import cache

TESTS = Path(__file__).parents[1]


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for one test."""
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def file_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty cache for the tests of a file."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv(cache.CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny transformers and of texts."""
    from tests.tiny import make_places

    return make_places(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="session")
def spread_places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with larger weights, and a ViT."""
    from tests.tiny import make_places, make_vit

    root = tmp_path_factory.mktemp("spread")
    make_vit(root / "vit")
    return {**make_places(root, spread=0.2), "vit": root / "vit"}


@pytest.fixture(scope="session")
def record_places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Folders of tiny causal language models, one of which has no end token, and of records; `rows`: these records."""
    from tests.tiny_lm import make_data, make_lm

    root = tmp_path_factory.mktemp("records")
    for kind in ("gpt2", "llama"):
        make_lm(root / kind, kind)
    make_lm(root / "mute", "gpt2", eos=False)
    rows = make_data(root / "data")
    return {**{k: root / k for k in ("gpt2", "llama", "mute", "data")}, "rows": rows}


@pytest.fixture
def own_network(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Writes a file of a user's own networks and gives the name of a function in it; forgets the modules afterwards."""
    from tests.unit.models.networks import OWN

    before = set(sys.modules)

    def made(function: str, text: str = OWN) -> str:
        (tmp_path / "mine.py").write_text(text)
        return f"{tmp_path / 'mine.py'}:{function}"

    yield made
    for n in set(sys.modules) - before:
        if n.startswith("rayfed_user_"):
            del sys.modules[n]


@pytest.fixture
def nets() -> Callable[..., dict[str, Any]]:
    """Gives changes to the toy's config: its clients train a network of `tests/own_nets.py`."""
    return lambda name, **options: {"task": {"model": {"name": f"{TESTS / 'own_nets.py'}:{name}", **options}}}


@pytest.fixture
def wrong_nets() -> Callable[[str], dict[str, Any]]:
    """The same with a network of `tests/wrong_nets.py`."""
    return lambda name: {"task": {"model": {"name": f"{TESTS / 'wrong_nets.py'}:{name}"}}}
