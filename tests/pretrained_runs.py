"""Tiny pretrained transformers as residents and in rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayfed import partition
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.models.start import start_from
from tests import toy
from tests.configs import refusal
from tests.tiny import changes


def resident(c: Any) -> Resident:
    return Resident(c, partition.build(c), start_from(c), "cpu")


def simulate(places: dict[str, Path], executor: str, dtype: str = "float64", **more: Any) -> Any:
    c = toy.config(executor=executor, dtype=dtype, **changes(places, **more))
    split, start, pool = partition.build(c), start_from(c), LocalPool()
    here = Resident(c, split, start, "cpu")
    pool.setup("toy", c, split, start)
    fed = toy.ToyFed(c, split, here.method, here.task, pool, "toy")
    state = fed.method.init(fed.task, 7)
    first = state
    for r in (1, 2):
        fed.begin(r)
        state = fed.method.round(state, fed, fed.task)
        fed.dispatch.commit()
    return first, state, fed


def refused(places: dict[str, Path], **more: Any) -> str:
    return refusal(lambda: partition.build(toy.config(**changes(places, **more))))
