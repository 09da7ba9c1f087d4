"""What Ray's own monitoring shows of a run: metrics on the node's port, readable names of jobs, tasks and actors."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.track.prometheus import BUCKETS, LABELS, METRICS

if TYPE_CHECKING:
    from rayfed.config.schema import Config

EVERY = 2.0  # seconds between two looks at queue and memory
NAMES = 100  # of rounds per run, at most: Ray's pages group tasks by name


class RayMetrics:
    """`rayfed.track.prometheus.Exporter` through `ray.util.metrics`: Prometheus sees `ray_rayfed_round` and so on.

    Values of one run, in the server's process. A thread looks at the pool's queue and at the memory of server and actors,
    and sets every gauge again: Ray forgets one that is not set for a while.
    """

    _known: dict[str, Any] = {}  # one object per name and process, as Ray wants it  # noqa: RUF012

    def __init__(self, labels: dict[str, str], pool: Any):
        self.labels, self.pool, self.restarts = labels, pool, pool.restarts
        self._asked: dict[Any, Any] = {}  # client actor -> its answer under way
        self._memory: dict[Any, dict[str, float]] = {}
        self._gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="rayfed-monitor", daemon=True)
        self._thread.start()

    @classmethod
    def _metric(cls, name: str) -> Any:
        from ray.util import metrics

        if name not in cls._known:
            m = METRICS[name]
            about: dict[str, Any] = {"description": m.text, "tag_keys": (*LABELS, *m.labels)}
            if m.kind == "histogram":
                about["boundaries"] = list(BUCKETS)
            cls._known[name] = getattr(metrics, m.kind.capitalize())(name, **about)
        return cls._known[name]

    def put(self, name: str, value: float, /, **labels: str) -> None:
        """As the protocol says. A counter of zero is not sent: Ray refuses it."""
        metric, tags = self._metric(name), {**self.labels, **labels}
        kind = METRICS[name].kind
        if kind == "gauge":
            self._gauges[name, tuple(labels.items())] = value
            metric.set(value, tags=tags)
        elif kind == "histogram":
            metric.observe(value, tags=tags)
        elif value > 0:
            metric.inc(value, tags=tags)

    def publish(self) -> None:
        """Ray sends on its own, every few seconds."""

    def close(self) -> None:
        self._over.set()
        self._thread.join(timeout=5)
        for part in ("server", "actors", "gpu"):
            self.put("rayfed_memory_bytes", 0.0, part=part)

    def _look(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(Exception):  # monitoring must not end a run, nor itself
                self.put("rayfed_queue_depth", float(self.pool.queued))
                self.put("rayfed_memory_bytes", memory()["rss"], part="server")
                self._actors()
                for (name, labels), value in list(self._gauges.items()):
                    self._metric(name).set(value, tags={**self.labels, **dict(labels)})
            self._over.wait(EVERY)

    def _actors(self) -> None:
        """Memory of the client actors: asked without waiting, since a busy actor answers after its calls."""
        import ray

        actors = list(self.pool.actors)
        for old in [a for a in self._asked if a not in actors]:
            del self._asked[old]
        self._memory = {a: m for a, m in self._memory.items() if a in actors}
        for actor in actors:
            if actor not in self._asked:
                self._asked[actor] = actor.memory.remote()
            elif ray.wait([self._asked[actor]], timeout=0)[0]:
                with contextlib.suppress(Exception):  # it died; its successor is asked
                    self._memory[actor] = ray.get(self._asked[actor])
                self._asked[actor] = actor.memory.remote()
        for part, kind in (("actors", "rss"), ("gpu", "gpu")):
            self.put("rayfed_memory_bytes", math.fsum(m[kind] for m in self._memory.values()), part=part)


def memory(cuda: bool = False) -> dict[str, float]:
    """Bytes that this process holds: resident, and reserved on its GPU."""
    import psutil

    gpu = 0.0
    if cuda:
        import torch

        gpu = float(torch.cuda.memory_reserved())
    return {"rss": float(psutil.Process(os.getpid()).memory_info().rss), "gpu": gpu}


# -- names -------------------------------------------------------------------------------------------------------------


def job_metadata(configs: Sequence[Config]) -> dict[str, str]:
    """What the dashboard's job page tells of a request; `job_name` is the list's name column."""
    first = configs[0]

    def each(values: Sequence[Any]) -> str:
        return ", ".join(dict.fromkeys(str(v) for v in values))

    return {
        "job_name": f"rayfed {first.name}",
        "method": each([c.method.name for c in configs]),
        "rounds": each([c.rounds for c in configs]),
        "clients": each([c.federation.clients for c in configs]),
        "clients per round": each([c.per_round() for c in configs]),
        "runs": str(len(configs)),
    }


def run_name(config: Config, folder: Path) -> str:
    """The server's call of a whole run: `fedavg, 60 clients, 20 per round, 30 rounds (quickstart-...)`."""
    where = folder.name if not folder.name.startswith("seed-") else f"{folder.parent.name}/{folder.name}"
    about = f"{config.method.name}, {config.federation.clients} clients, {config.per_round()} per round"
    return f"{about}, {config.rounds} rounds ({where})"


def round_name(config: Config, state: Mapping[str, Any]) -> str | None:
    """The rounds in hand: `fedavg round 4/30, 20 of 60 clients`; None while none is. At most NAMES names per run."""
    status, done = state.get("status"), int(state.get("round", 0))
    if status not in ("starting", "running") or done >= config.rounds or not state.get("run"):
        return None
    if status == "starting":
        which = "starting"
    else:
        step = math.ceil(config.rounds / NAMES)
        first = done // step * step + 1
        which = f"round {first}" if step == 1 else f"rounds {first}-{min(first + step - 1, config.rounds)}"
        which += f"/{config.rounds}"
    return f"{config.method.name} {which}, {config.per_round()} of {config.federation.clients} clients"


class Shown:
    """Makes the rounds in hand visible: a call of the server's that is named after them and lasts as long as they do.

    An actor's `repr` is taken once, when it starts; the state of a named call is what Ray's pages show live.
    """

    def __init__(self, server: Any, config: Config):
        self.server, self.config = server, config
        self._name: str | None = None

    def tell(self, state: Mapping[str, Any]) -> None:
        """The server's newest status."""
        name = round_name(self.config, state)
        if name and name != self._name:
            step = math.ceil(self.config.rounds / NAMES)
            until = min((state["round"] // step + 1) * step, self.config.rounds) if state["status"] == "running" else 1
            self.server.during.options(name=name).remote(state["run"], until)
        self._name = name
