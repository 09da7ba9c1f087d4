"""Which executor trains a task's model faster on this device, and on which kernels: tried on some of the run's own clients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rayfed import execute
from rayfed.execute.tuning import kernels, process
from rayfed.execute.tuning.kernels import Kernels
from rayfed.execute.tuning.replay import settled
from rayfed.lazy import torch
from rayfed.visit import sgd_visit, steps

if TYPE_CHECKING:
    from rayfed.engine.worker import Resident

LOOK = 0.25  # seconds of `loop` that a trial of the executors is worth


def run(res: Resident, cohort: int) -> dict[str, Any]:
    """Seconds that a client's local step takes under each executor, `kernels` that it then has, `why` it cannot be vectorised.

    `loop` is tried on one client, `vmap` on as many of the cohort as LOOK seconds of the loop's would do, four at least: a
    model with so much work in a step gains little from more of them.
    """
    cohort = min(cohort, len(res.planner.fed.class_counts))
    products, layouts = _open(res)
    loop: dict[Kernels, float] = {}
    vmap: dict[Kernels, float] = {}
    why = {}
    with torch.no_grad():
        for last in layouts:
            first = Kernels(products[0], last)
            look = _trial(res, "loop", 1, 2, first)
            tried = {by: look(by) for by in (Kernels(p, last) for p in products)}
            if min(tried.values()) < 0.8 * tried[first]:  # as clear for whatever follows
                products = products[-1:]
            loop |= tried
        step = min(loop.values())
        few, hopeless = min(cohort, 4), 1.3 * step
        try:
            for k in sorted({few, max(few, min(cohort, int(LOOK / step)))}):
                n = max(1, min(3, int(LOOK / (step * k))))
                look = _trial(res, "vmap", k, n, Kernels(products[0]), hopeless)
                vmap = {by: look(by) for by in map(Kernels, products)}
                if min(vmap.values()) > hopeless and min(vmap.values()) * k * n > LOOK / 2:
                    break
            if cohort > 2 * k and 0.7 < min(vmap.values()) / step < 1.1:  # a tie, and the whole cohort is another size
                by = _best(vmap)
                vmap = {by: _trial(res, "vmap", cohort, 1, by)(by)}
            elif res.device != "cpu" and cohort > k:  # whether it fits
                _trial(res, "vmap", cohort, 1, _best(vmap))
        except Exception as e:
            vmap, why = {Kernels(products[0]): math.inf}, {"why": f"{type(e).__name__}: {e}"}
    process.give_back()
    chosen = {"loop": _best(loop), "vmap": _best(vmap)}
    return {"loop": loop[chosen["loop"]], "vmap": vmap[chosen["vmap"]], "kernels": chosen, **why}


def _open(res: Resident) -> tuple[list[str], list[bool]]:
    """What the settings leave open, as matrix products and channels-last."""
    r = res.config.resources
    fixed = kernels.of(r, res.device)
    convolves = any(p.ndim == 4 and p[0, 0].numel() > 1 for p in res.task.initial.values())
    products = r.matmul == "auto" and res.device == "cpu" and kernels.exact()
    return (
        ["torch", "onednn"] if products else [fixed.matmul],
        [False, True] if r.channels_last == "auto" and convolves else [fixed.channels_last],
    )


def _trial(
    res: Resident, name: str, k: int, n: int, first: Kernels, hopeless: float = math.inf
) -> Callable[[Kernels], float]:
    """Tells the seconds of one client's step on some kernels, the better of two calls; `first` ones make what later calls reuse.

    Calls of more than LOOK / 2 seconds are neither recorded, which would save little, nor repeated, nor made at all on further
    kernels once a step took more than `hopeless` seconds.
    """
    work = [(steps(n), lambda name: True)]
    visit = sgd_visit(res.task.loss, res.config.local, phases=work, vectorize=res.task.vectorize)
    drawn = res.planner.cohort(visit, range(k), dispatch=0, round=1, rounds=1, lr=0.0)

    def once() -> float:
        began = time.perf_counter()
        list(execute.run(name, visit, drawn, {"model": res.task.initial}, {}, {}, res.data))
        if res.device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / (k * n)

    with kernels.by(first):
        once()
        seen = once()
        long = seen * k * n > LOOK / 2
        while not long and not settled(visit.phases[0].step):
            once()

    def look(by: Kernels) -> float:
        if long and seen > hopeless:
            return seen
        with kernels.by(by):
            return once() if long else min(once(), once())

    return look


def _best(seconds: dict[Kernels, float]) -> Kernels:
    """The usual kernels unless others are clearly faster."""
    usual, least = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return least if seconds[least] < 0.95 * seconds[usual] else usual
