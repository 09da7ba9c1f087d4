"""Metrics of a run through Ray's own monitoring, on the metrics port of the server's node."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from typing import Any

from actors.messages import Memory
from rayfed.track.prometheus import BUCKETS, LABELS, METRICS

SAMPLE_S = 2.0  # between two samples of queue and memory


class RayMetrics:
    """`rayfed.track.prometheus.Exporter` through `ray.util.metrics`: Prometheus sees `ray_rayfed_round` and so on.

    Values of one run, in the server's process. A thread samples the pool's queue and the memory of server and actors, and sets
    every gauge again: Ray forgets one that is not set for a while.
    """

    _known: dict[str, Any] = {}  # one object per name and process, as Ray wants it  # noqa: RUF012

    def __init__(self, labels: dict[str, str], pool: Any):
        self.labels, self.pool, self.restarts = labels, pool, pool.restarts
        self._asked: dict[Any, Any] = {}  # client actor -> reference of its answer
        self._memory: dict[Any, Memory] = {}
        self._gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample_all, name="rayfed-monitor", daemon=True)
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
        """Set a gauge, observe a histogram's value, or increase a counter; not by zero, which Ray refuses."""
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
        """Do nothing: Ray sends on its own, every few seconds."""

    def close(self) -> None:
        """End the thread; memory is zero from now on."""
        self._over.set()
        self._thread.join(timeout=5)
        for part in ("server", "actors", "gpu"):
            self.put("rayfed_memory_bytes", 0.0, part=part)

    def _sample_all(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(Exception):  # monitoring must end neither a run nor itself
                self.put("rayfed_queue_depth", float(self.pool.queued))
                self.put("rayfed_memory_bytes", measure_memory().resident, part="server")
                self._sample_actors()
                for (name, labels), value in list(self._gauges.items()):
                    self._metric(name).set(value, tags={**self.labels, **dict(labels)})
            self._over.wait(SAMPLE_S)

    def _sample_actors(self) -> None:
        """Sample the memory of the client actors, without waiting: a busy actor answers after its calls."""
        import ray

        actors = list(self.pool.actors)
        for old in [a for a in self._asked if a not in actors]:
            del self._asked[old]
        self._memory = {a: m for a, m in self._memory.items() if a in actors}
        for actor in actors:
            if actor not in self._asked:
                self._asked[actor] = actor.measure_memory.remote()
            elif ray.wait([self._asked[actor]], timeout=0)[0]:
                with contextlib.suppress(Exception):  # it died; its successor is asked
                    self._memory[actor] = ray.get(self._asked[actor])
                self._asked[actor] = actor.measure_memory.remote()
        known = self._memory.values()
        self.put("rayfed_memory_bytes", math.fsum(m.resident for m in known), part="actors")
        self.put("rayfed_memory_bytes", math.fsum(m.gpu for m in known), part="gpu")


def measure_memory(cuda: bool = False) -> Memory:
    """Measure what this process holds. cuda: on its GPU too."""
    import psutil

    gpu = 0.0
    if cuda:
        import torch

        gpu = float(torch.cuda.memory_reserved())
    return Memory(float(psutil.Process(os.getpid()).memory_info().rss), gpu)
