"""Asking the clients of odd_method.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests import toy
from tests.toy import ToyFed

BAD = 5  # somebody in the middle of a cohort of the first round
ASKED = (9, 0, 5, 2, 11, 7, 4)
SHORT: dict[str, Any] = {"rounds": 1, "local": {"epochs": None, "steps": 1}, "resources": {"cohort": 3}}


def seen(fed: ToyFed) -> list[int]:
    """Clients in the order in which the method's code finished with them."""
    return sys.modules[type(fed.method).__module__].SEEN


def policy(name: str) -> dict[str, Any]:
    return {"failures": {"client_error": name}}


class Without(ToyFed):
    """Nobody asks client BAD."""

    def sample(self, n: int | None = None, *, where: Sequence[int] | None = None) -> tuple[int, ...]:
        return tuple(c for c in super().sample(n, where=where) if c != BAD)


def sent(client: int, n: int) -> np.ndarray:
    return np.sin((client + 1.0) * np.arange(1, n + 1))


def asked(odd: str, n: int, pool: Any = None, **more: Any) -> Any:
    fed = toy.make_fed(toy.config({"name": odd, "size": n}, dtype="float64", resources={"cohort": 3}), pool)
    fed.begin(1)
    return fed.ask(fed.method.rows, ASKED, **more)
