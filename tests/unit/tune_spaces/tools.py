"""What tests of sweeps share."""

from __future__ import annotations

from typing import Any

import pytest

from rayfed.errors import ConfigError
from tests import toy
from tune_spaces.sweep.request import SweepOptions, check_request
from tune_spaces.sweep.spaces import Space, load_spaces

RAW: dict[str, Any] = {**toy.TOY, "method": {"name": "ifca", "clusters": 3}}


def space_of(*names: str, sets: tuple[str, ...] = (), **changes: Any) -> Space:
    problems: list[str] = []
    found = load_spaces(names, toy.config(RAW["method"], **changes), problems, sets)
    assert not problems
    return found


def refused(*names: str, sets: tuple[str, ...] = (), config: Any = None, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        check_request(names, config or RAW, SweepOptions(**options), sets)
    return error.value.problems
