"""Texts as token ids: empty ones are counted, a user's own ids are held against the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayfed.config.schema import Config
from rayfed.data import Dataset, Part
from rayfed.errors import ConfigError
from rayfed.partition import build
from rayfed.storage.cache import CACHE
from tests import tiny, toy

Y = np.array([0, 1, 2] * 8)


@pytest.fixture
def config(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    monkeypatch.setenv(CACHE, str(tmp_path))
    return toy.config(**tiny.changes(places, federation={"clients": 2, "per_round": 2}))


def split(config: Config, x: Any) -> Any:
    part = Part(x, Y)
    return build(config, Dataset("mine", part, part, 3, ("a", "b", "c"), "text"))


def test_empty_texts_are_counted_in_a_note(config: Config) -> None:
    texts = np.array(["the w00", "w10", "w20"] * 8, object)
    assert split(config, texts).notes == ()
    texts[:2] = ["", " \n"]
    assert split(config, texts).notes == ("4 of 48 texts of mine are empty",)


def test_token_ids_are_held_against_vocabulary_and_places(config: Config) -> None:
    ids = np.random.default_rng(0).integers(0, 32, (24, 6)).astype(np.int32)
    ids[0, 0] = 31
    made = split(config, ids)
    assert made.kind == "text" and np.array_equal(made.arrays["x"][:24], ids)
    ids[5, 1] = 32
    with pytest.raises(ConfigError, match=r"task.data: mine holds token 32, hf:.* knows 0 to 31"):
        split(config, ids)
    with pytest.raises(ConfigError, match=r"mine holds 25 tokens a text, hf:.* takes at most 24 tokens"):
        split(config, np.zeros((24, 25), np.int32))


def test_damaged_ids_in_the_cache_are_made_anew(config: Config, tmp_path: Path) -> None:
    texts = np.array(["the w00", "w10", "w20"] * 8, object)
    right = split(config, texts).arrays["x"]
    (file,) = tmp_path.glob("tokens/*.arrow")
    whole = file.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"ARROW1" + bytes(len(whole))):
        file.write_bytes(broken)
        assert np.array_equal(split(config, texts).arrays["x"], right) and file.read_bytes() == whole
