"""The registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfed import transform
from rayfed.errors import ConfigError
from rayfed.transform import PLACES

ROOT = Path(__file__).parents[3]


def test_every_kind_has_a_place_a_paper_and_a_test() -> None:
    for kind in transform.names():
        cls = transform.get(kind)
        assert (
            cls.place in PLACES
            and "et al. " in (cls.__doc__ or "")
            and cls(cls.Settings.model_construct()).kind == kind
        )
        assert (Path(__file__).parent / f"test_{kind}.py").is_file()
        assert f"`{kind}`" in (ROOT / "docs" / "transforms.md").read_text()


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'klip' found \(did you mean 'clip'\?\), allowed: clip, gaussian"):
        transform.get("klip")
