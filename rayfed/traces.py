"""Traces: CSV files about clients, a line for each thing that is known of one."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayfed.errors import ConfigError, nearest

NAMED = 5  # clients or rounds that a sentence names
MOST = 2**53  # numbers of clients, which floats hold exactly


def read(where: str, file: str, columns: Sequence[str], clients: int | None, whole: bool) -> np.ndarray:
    """Return the lines of a trace, (lines, columns) float64; the first column is a client's number.

    where: the setting that names the file; columns: what its first line must be; clients: how many there are, None where the file may
    name any; whole: whether the numbers are whole ones from 1 on, else positive ones, of which `inf` is one. ConfigError names the
    lines that are wrong.
    """
    said = f"{where}: {file!r}"
    try:
        with Path(file).open(encoding="utf-8", newline="") as lines:
            rows = list(csv.reader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise ConfigError(f"{said} cannot be read: {e}") from e
    head = rows[0] if rows else []
    if head != list(columns):
        hints = [f"{c!r}{nearest(c, columns)}" for c in head if c not in columns]
        found = ", ".join(hints) or ",".join(head) or "nothing"
        raise ConfigError(f"{said} begins with {found}; needed: {','.join(columns)}")
    most = MOST if clients is None else clients
    first = "from 0" if clients is None else f"of 0 to {clients - 1}"
    needed = f"{len(columns)} {'whole ' if whole else ''}numbers, {first} and {'from 1' if whole else 'above 0'}"
    out, wrong = [], []
    for i, row in enumerate(rows[1:], 2):
        numbers = _numbers(row, len(columns), most, whole)
        if numbers is None:
            wrong.append(f"{said}: line {i} is {','.join(row)!r}, needed: {needed}")
        else:
            out.append(numbers)
    if wrong:
        raise ConfigError(wrong)
    return np.asarray(out, np.float64).reshape(-1, len(columns))


def _numbers(row: Sequence[str], n: int, clients: int, whole: bool) -> list[float] | None:
    """Return a line's numbers, None where they are none or out of range."""
    try:
        client, *rest = int(row[0]), *map(int if whole else float, row[1:])
    except (ValueError, IndexError):
        return None
    fits = (
        len(row) == n and 0 <= client < clients and all(x >= 1 if whole else x > 0 and not math.isnan(x) for x in rest)
    )
    return [client, *rest] if fits else None


def dealt(rng: np.random.Generator, lines: np.ndarray, clients: int, said: str) -> np.ndarray:
    """Return which of the file's clients each client is dealt at random, (clients,): places in the order of the file's numbers. said: the
    setting and the file. ConfigError where the file has none."""
    n = len(np.unique(lines[:, 0]))
    if not n:
        raise ConfigError(f"{said} has no client; needed: at least one")
    return rng.integers(0, n, clients)


def named(which: Any) -> str:
    """Return the places where an array is true, the first few of them, in words."""
    at = np.flatnonzero(which)
    return ", ".join(map(str, at[:NAMED])) + (" ..." if len(at) > NAMED else "")
