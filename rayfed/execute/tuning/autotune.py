"""Which executor trains a task's model faster on this device, and on which kernels: timed on some of the run's own clients."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rayfed import execute
from rayfed.execute.tuning import kernels, process, replay
from rayfed.execute.tuning.kernels import Kernels
from rayfed.lazy import torch
from rayfed.training import sgd_visit
from rayfed.visits import steps

if TYPE_CHECKING:
    from rayfed.engine.resident import Resident

BUDGET_S = 0.25  # seconds of `loop` that one timing is worth
REPEATS, AGREE = (
    6,
    1.1,
)  # most measurements of one candidate, and how much larger the second smallest may be than the smallest
WARM_UP = 8  # most calls until recordings are played or off; two or three are enough

Timer = Callable[[Kernels], float]  # the seconds of a client's step on some kernels


@dataclass(frozen=True)
class Timing:
    """What a timing found, by executor ("loop", "vmap"): seconds of a client's local step, infinite for a model that cannot be
    vectorised, and the kernels that give them; refused: why the model cannot, "" if it can.

    cpu_share: of the trial's wall time, the part in which this thread had a core; judged_by: "cpu time", which others' work on
    the machine does not lengthen, or "wall time" (GPUs); bfloat16: whether the device has units for it.
    """

    seconds: dict[str, float]
    kernels: dict[str, Kernels]
    refused: str = ""
    cpu_share: float = 1.0
    judged_by: str = "cpu time"
    bfloat16: bool = False

    @property
    def faster(self) -> str:
        """The executor to take: `loop` unless the other one is clearly faster, since that takes less memory."""
        return "vmap" if self.seconds["vmap"] < 0.9 * self.seconds["loop"] else "loop"


def time_families(res: Resident, cohort: int) -> Timing:
    """Time a client's local step as `time_executors` does; where clients have several models, the mean over them by their shares, on the
    kernels of the family that takes longest. A family that says it runs one client at a time does so under `vmap`, too."""
    if res.task.family is None:
        return time_executors(res, cohort)
    found, shares = [], np.bincount(res.task.family, minlength=len(res.task.families)) / len(res.task.family)
    for task in res.task.families.values():
        one = copy.copy(res)
        one.task = task
        timed = time_executors(one, cohort)
        alone = {**timed.seconds, "vmap": timed.seconds["loop"]}
        found.append(timed if task.vectorize is True else replace(timed, seconds=alone, refused=""))
    longest = max(found, key=lambda t: min(t.seconds.values()))
    seconds = {e: sum(float(s) * t.seconds[e] for s, t in zip(shares, found, strict=True)) for e in longest.seconds}
    refused = next((t.refused for t in found if t.refused), "")
    return replace(longest, seconds=seconds, refused=refused, cpu_share=min(t.cpu_share for t in found))


def time_executors(res: Resident, cohort: int) -> Timing:
    """Time a client's local step under each executor, on the kernels that the config leaves open.

    `loop` is timed on one client, `vmap` on as many of the cohort as the loop manages in BUDGET_S seconds, four at least: a
    model with so much work in a step gains little from more of them.
    """
    cohort = min(cohort, len(res.sampler.fed.class_counts))
    wall, cpu = time.perf_counter(), time.thread_time()
    products, layouts = _candidates(res)
    refused = ""
    with torch.no_grad():
        loop, products = _time_loop(res, products, layouts)
        try:
            vmap = _time_vmap(res, cohort, products, min(loop.values()))
        except Exception as e:
            vmap, refused = {Kernels(products[0]): math.inf}, f"{type(e).__name__}: {e}"
    process.release_memory()
    best = {"loop": _fastest(loop), "vmap": _fastest(vmap)}
    seconds = {"loop": loop[best["loop"]], "vmap": vmap[best["vmap"]]}
    share = (time.thread_time() - cpu) / max(1e-9, time.perf_counter() - wall)
    judged_by = "cpu time" if res.device == "cpu" else "wall time"
    return Timing(seconds, best, refused, min(1.0, share), judged_by, kernels.has_bfloat16(res.device))


def _candidates(res: Resident) -> tuple[list[str], list[bool]]:
    """Return what the settings leave open: the matrix products and whether channels-last, the usual ones first."""
    r = res.config.resources
    fixed = kernels.from_resources(r, res.device)
    convolves = any(p.ndim == 4 and p[0, 0].numel() > 1 for p in res.task.initial.values())
    products_open = r.matmul == "auto" and res.device == "cpu" and kernels.onednn_is_exact()
    layout_open = r.channels_last == "auto" and convolves
    return (
        ["torch", "onednn"] if products_open else [fixed.matmul],
        [False, True] if layout_open else [fixed.channels_last],
    )


def _time_loop(res: Resident, products: list[str], layouts: list[bool]) -> tuple[dict[Kernels, float], list[str]]:
    """Return the seconds on each of the kernels, and the products that are left to try: those that did not lose clearly."""
    seconds: dict[Kernels, float] = {}
    for last in layouts:
        usual = Kernels(products[0], last)
        timer = _timer(res, "loop", 1, 2, usual)
        timed = {candidate: timer(candidate) for candidate in (Kernels(p, last) for p in products)}
        if min(timed.values()) < 0.8 * timed[usual]:
            products = products[-1:]
        seconds |= timed
    return seconds, products


def _time_vmap(res: Resident, cohort: int, products: list[str], step: float) -> dict[Kernels, float]:
    """Return the seconds of a client's step on each of the products; `step`: what the loop's takes."""
    few, hopeless = min(cohort, 4), 1.3 * step
    for k in sorted({few, max(few, min(cohort, int(BUDGET_S / step)))}):
        n = max(1, min(3, int(BUDGET_S / (step * k))))
        timer = _timer(res, "vmap", k, n, Kernels(products[0]), hopeless)
        seconds = {candidate: timer(candidate) for candidate in map(Kernels, products)}
        if min(seconds.values()) > hopeless and min(seconds.values()) * k * n > BUDGET_S / 2:
            break
    if cohort > 2 * k and 0.7 < min(seconds.values()) / step < 1.1:  # a tie, and the whole cohort is another size
        best = _fastest(seconds)
        return {best: _timer(res, "vmap", cohort, 1, best)(best)}
    if res.device != "cpu" and cohort > k:  # whether it fits
        _timer(res, "vmap", cohort, 1, _fastest(seconds))
    return seconds


def _timer(res: Resident, executor: str, k: int, n: int, usual: Kernels, hopeless: float = math.inf) -> Timer:
    """Return what times `n` local steps of `k` clients, the best of two calls or, where these disagree, of more; what calls reuse is
    made on the `usual` kernels.

    On a CPU it is this thread's CPU time that counts: on a busy machine others' work takes turns with each of the calls, and would
    decide. It takes part in all of torch's work, so that with more threads it is the time that all of them take.

    Calls of more than BUDGET_S / 2 seconds are neither recorded, which would save little, nor repeated, nor made at all on
    further kernels once a step took more than `hopeless` seconds.
    """
    work = [(steps(n), lambda name: True)]
    visit = sgd_visit(res.task.loss, res.config.local, phases=work, vectorize=res.task.vectorize)
    drawn = res.sampler.cohort(visit, range(k), dispatch=0, round=1, rounds=1, lr=0.0)

    clock = time.thread_time if res.device == "cpu" else time.perf_counter

    def call_once() -> float:
        began = clock()
        list(execute.execute_visit(executor, visit, drawn, {"model": res.task.initial}, {}, {}, res.data))
        if res.device != "cpu":
            torch.cuda.synchronize()
        return (clock() - began) / (k * n)

    with kernels.using(usual):
        call_once()
        warm = call_once()
        long = warm * k * n > BUDGET_S / 2
        for _ in range(0 if long else WARM_UP):
            if replay.is_decided(visit.phases[0].step):
                break
            call_once()

    def timer(candidate: Kernels) -> float:
        if long and warm > hopeless:
            return warm
        with kernels.using(candidate):
            return call_once() if long else _settled(call_once)

    return timer


def _settled(measure: Callable[[], float]) -> float:
    """Return the least of two measurements, or of up to REPEATS where the two smallest disagree: caches and clocks are shared, too."""
    seconds = sorted((measure(), measure()))
    while len(seconds) < REPEATS and seconds[1] > AGREE * seconds[0]:
        seconds = sorted((*seconds, measure()))
    return seconds[0]


def _fastest(seconds: dict[Kernels, float]) -> Kernels:
    """Return the usual kernels (the first) unless others are clearly faster."""
    usual, least = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return least if seconds[least] < 0.95 * seconds[usual] else usual
