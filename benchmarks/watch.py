"""What the processes of a command use while they run: CPU seconds, memory, open files."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

MARK = "PEERS_MARK"  # environment variable by which a run's processes are known


class Sample(NamedTuple):
    """One sample: seconds since the epoch, bytes of PSS of all, resident bytes by role, open files by role, `also`'s numbers."""

    time: float
    pss: int
    rss: dict[str, int]
    files: dict[str, int]
    also: dict[str, float]


class Watch(threading.Thread):
    """All processes with a mark in their environment, while they run. `every`: seconds between two samples of memory and files;
    `also`: further numbers to sample then, called with the pids."""

    def __init__(self, mark: str, every: float = 0.5, also: Callable[[list[int]], dict[str, float]] | None = None):
        super().__init__(daemon=True)
        self.mark, self.every, self.also, self.over = f"{MARK}={mark}", every, also, threading.Event()
        self.cpu: list[tuple[float, float]] = []
        self.samples: list[Sample] = []
        self._mine: dict[int, bool] = {}
        self._spent: dict[int, float] = {}
        self._role: dict[int, str] = {}  # a worker's title changes with what it does

    def run(self) -> None:
        due = 0.0
        while not self.over.wait(0.2):
            whole = time.monotonic() >= due
            if whole:
                due = time.monotonic() + self.every
            self._take(whole)

    def _take(self, whole: bool) -> None:
        pss, rss, files, pids = 0, dict[str, int](), dict[str, int](), []
        # a sample of every process costs some 10 ms of a core, which is one of those that are measured
        for pid in psutil.pids() if whole else [p for p, mine in self._mine.items() if mine]:
            try:
                if pid not in self._mine:
                    self._mine[pid] = self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if not self._mine[pid]:
                    continue
                pids.append(pid)
                process = psutil.Process(pid)
                t = process.cpu_times()
                self._spent[pid] = t.user + t.system
                if whole:
                    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
                    pss += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
                    if self._role.get(pid, "ray") == "ray":
                        self._role[pid] = role(process)
                    who = self._role[pid]
                    rss[who] = rss.get(who, 0) + process.memory_info().rss
                    files[who] = files.get(who, 0) + process.num_fds()
            except (psutil.Error, OSError, StopIteration):
                continue
        self.cpu.append((time.time(), sum(self._spent.values())))
        if whole and pids:
            self.samples.append(Sample(time.time(), pss, rss, files, self.also(pids) if self.also else {}))

    @property
    def peak(self) -> int:
        """The most PSS of all at once, bytes."""
        return max((s.pss for s in self.samples), default=0)

    def end(self) -> list[int]:
        """Stop sampling; return the processes that are still there."""
        self.over.set()
        self.join()
        return [p for p, mine in self._mine.items() if mine and psutil.pid_exists(p)]

    def between(self, a: float, b: float) -> float:
        """Return the CPU seconds spent between two times."""
        at, spent = zip(*self.cpu, strict=True)
        return float(np.interp(b, at, spent) - np.interp(a, at, spent))


def role(process: psutil.Process) -> str:
    """Return server | clients | driver | ray: Ray names its workers after the actor that they hold, and after the visit they make."""
    words = process.cmdline()
    title = words[0] if words else ""
    if title.startswith("ray::ServerActor"):
        return "server"
    if title.startswith(("ray::ClientActor", "ray::visit:")):
        return "clients"
    return "driver" if len(words) > 1 and Path(words[1]).name == "rayfed" else "ray"


def end_processes(left: list[int], mark: str) -> None:
    """End what is left of a command, after checking once more that each process has this mark."""
    for pid in left:
        try:
            if f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                psutil.Process(pid).kill()
        except (psutil.Error, OSError):
            continue


def processor() -> str:
    """Describe the processor: its kind, and where the system gives them its name and the units that decide how fast products are."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.machine()
    entries = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    kind = f"family {entries['cpu family']} model {entries['model']}" if "cpu family" in entries else None
    units = [u for u in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if u in entries.get("flags", "").split()]
    return " ".join(filter(None, (platform.machine(), entries.get("model name"), kind, *units)))


def about() -> dict[str, Any]:
    """Describe the machine."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "python": platform.python_version(),
    }
