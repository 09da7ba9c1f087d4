"""Which executor, and on which kernels: what is timed, and what is made of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayfed.execute.tuning import autotune, kernels
from rayfed.execute.tuning.kernels import Kernels
from tests.unit.execute.convolutions import BOTH, LAST, ONE, resident


def spin(seconds: float) -> None:
    """Compute for so many seconds of CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def timed(monkeypatch: pytest.MonkeyPatch, times: Callable[[str, Kernels, int], float]) -> list[tuple[str, Kernels]]:
    """Measurements replaced by these seconds; returns the list of what was measured."""
    measurements: list[tuple[str, Kernels]] = []

    def fake(res: Any, name: str, k: int, n: int, first: Kernels, hopeless: float = 0.0) -> Callable[[Kernels], float]:
        def measure(by: Kernels) -> float:
            measurements.append((name, by))
            return times(name, by, k)

        return measure

    monkeypatch.setattr(autotune, "_timer", fake)
    monkeypatch.setattr(kernels, "onednn_is_exact", lambda: True)
    return measurements


@pytest.mark.parametrize(
    ("seconds", "loop", "vmap", "measurements"),
    [
        ({}, Kernels(), Kernels(), 6),  # all alike: the usual ones
        ({ONE: 0.5, BOTH: 0.4}, BOTH, ONE, 4),  # oneDNN clear at once: nothing is tried without it
        ({LAST: 0.9, BOTH: 0.96}, LAST, Kernels(), 6),
        ({ONE: 0.9}, ONE, ONE, 6),
        ({ONE: 0.97, LAST: 0.96, BOTH: 0.97}, Kernels(), Kernels(), 6),  # within the noise
        ({LAST: 3.0, BOTH: 3.0}, Kernels(), Kernels(), 6),  # a layout that is slower says nothing about products
    ],
)
def test_the_faster_kernels_are_taken(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[Kernels, float], loop: Kernels, vmap: Kernels, measurements: int
) -> None:
    seen = timed(monkeypatch, lambda name, by, k: seconds.get(by, 1.0) * (1.0 if name == "loop" else 2.0))
    out = autotune.time_executors(resident(), 4)
    assert out.kernels == {"loop": loop, "vmap": vmap} and len(seen) == measurements
    assert out.seconds["loop"] == seconds.get(loop, 1.0) and out.seconds["vmap"] == 2 * seconds.get(vmap, 1.0)
    assert not any(by.channels_last for name, by in seen if name == "vmap")


def test_what_is_set_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = timed(monkeypatch, lambda name, by, k: 1.0)
    autotune.time_executors(resident(matmul="torch", channels_last=False), 4)
    assert {by for _, by in seen} == {Kernels()}
    seen.clear()
    autotune.time_executors(resident(matmul="onednn", channels_last=True), 4)
    assert set(seen) == {("loop", BOTH), ("vmap", ONE)}


def test_a_tie_is_decided_on_the_whole_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def times(name: str, by: Kernels, k: int) -> float:
        sizes.append((name, k))
        return 1.0 if name == "loop" else 0.9 if k == 4 else 2.0

    timed(monkeypatch, times)
    out = autotune.time_executors(resident(matmul="torch", channels_last=False), 12)
    assert sizes == [("loop", 1), ("vmap", 4), ("vmap", 12)] and out.seconds["vmap"] == 2.0


@pytest.mark.parametrize("fits", [True, False])
def test_a_gpu_is_tried_with_the_whole_cohort(monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    timed(monkeypatch, lambda name, by, k: 1.0 if name == "loop" else 0.5)
    sizes, fake = [], autotune._timer

    def sized(res: Any, name: str, k: int, *rest: Any) -> Callable[[Kernels], float]:
        sizes.append(k)
        if k == 12 and not fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fake(res, name, k, *rest)

    monkeypatch.setattr(autotune, "_timer", sized)
    res = resident(channels_last=False)
    res.device = "cuda"
    out = autotune.time_executors(res, 12)
    assert sizes == [1, 4, 12] and (out.seconds["vmap"] == 0.5) == fits
    assert fits or "out of memory" in out.refused


def test_a_model_that_cannot_be_vectorised_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(name: str, by: Kernels, k: int) -> float:
        if name == "vmap":
            raise RuntimeError("no rule")
        return 1.0

    timed(monkeypatch, times)
    out = autotune.time_executors(resident(), 4)
    assert out.seconds["vmap"] == float("inf") and out.refused == "RuntimeError: no rule"


def test_one_measurement_is_enough_where_vmap_is_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real timing: a long call that is far from the loop's is not warmed up any further."""
    calls = []
    res = resident()
    real = autotune.execute.execute_visit

    def slow(name: str, *args: Any) -> Any:
        calls.append(name)
        if name == "vmap":
            spin(autotune.BUDGET_S)
        return real(name, *args)

    monkeypatch.setattr(autotune.execute, "execute_visit", slow)
    out = autotune.time_executors(res, 4)
    assert calls.count("vmap") == 2 and calls.count("loop") > 4 and out.seconds["vmap"] > 1.3 * out.seconds["loop"]


@pytest.mark.parametrize(
    ("measured", "least", "calls"),
    [([1.0, 1.05], 1.0, 2), ([1.0, 2.0, 1.5, 0.98], 0.98, 4), ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1.0, 6)],
)
def test_a_measurement_is_repeated_until_two_agree(measured: list[float], least: float, calls: int) -> None:
    left = list(measured)
    assert autotune._settled(lambda: left.pop(0)) == least and len(measured) - len(left) == calls


def test_work_of_others_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which every call of vmap waits for a core: what it takes is what it computes, and the trial says how it was."""
    real = autotune.execute.execute_visit

    def waits(name: str, *args: Any) -> Any:
        if name == "vmap":
            time.sleep(0.05)
        return real(name, *args)

    monkeypatch.setattr(autotune.execute, "execute_visit", waits)
    out = autotune.time_executors(resident(), 4)
    assert out.seconds["vmap"] < 0.05 / 4 and out.cpu_share < 0.9 and out.judged_by == "cpu time"
