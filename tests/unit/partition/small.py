"""A small federation to be described."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from rayfed.launch.preflight import load_request
from rayfed.partition import describe as d

ROOT = Path(__file__).parents[3]


BLOBS = {"name": "synthetic:blobs", "examples": 300, "classes": 4, "features": 5, "test": 40}


def raw(**federation: Any) -> dict[str, Any]:
    f = {"clients": 9, "partition": {"kind": "dirichlet", "alpha": 0.4}, **federation}
    return {"name": "small", "seed": 2, "task": {"data": BLOBS, "model": "linear"}, "method": "fedavg", "federation": f}


def one(**federation: Any) -> d.Description:
    (found,) = d.describe(load_request(raw(**federation)))
    return found


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])  # type: ignore[return-value]
