"""Measure how long the systems' ready configs take: `python benchmarks/minutes.py [NAME ...]`, all by default.

Each runs as `rayfed run NAME --local` in a process of its own with one thread, and the minutes that it computed (not those that it waited,
so that other work on the machine counts little) go to `rayfed/launch/minutes.json`, which `rayfed systems` reads.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile

from rayfed.launch.system_pages import MINUTES, names
from rayfed.storage.atomic import durable_write
from rayfed.storage.text_files import json_bytes

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def measured(name: str) -> float | None:
    """Return the minutes of a core that a ready config takes, start and report included; None where it does not end well."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "rayfed", "run", name, "--local", "--json", "--out", folder]
        done = subprocess.run(command, env={**os.environ, **THREADS}, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds / 60 if done.returncode == 0 else None


def main(asked: list[str]) -> None:
    for name in asked or names():
        minutes = measured(name)
        print(f"{name:28} {'failed' if minutes is None else f'{minutes:.2f} minutes'}", flush=True)
        if minutes is not None:
            known = json.loads(MINUTES.read_text(encoding="utf-8")) if MINUTES.is_file() else {}
            known[name] = {"minutes": round(minutes, 2)}
            durable_write(MINUTES, json_bytes(dict(sorted(known.items()))))


if __name__ == "__main__":
    main(sys.argv[1:])
