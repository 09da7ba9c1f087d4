"""What this machine has for rayfed, and what stands in its way: `rayfed doctor`. Ray itself is tried by `actors.health`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import NamedTuple

from rayfed.execute.tuning import compiler
from rayfed.storage.cache import cache_folder

PACKAGE = "rayfed-engine"
DEVELOPMENT = ("test", "lint")  # extras that nobody needs to run an experiment
PORTS = {8270: "the live page (rayfed monitor --serve)", 8265: "Ray's dashboard", 6379: "the head of a Ray cluster"}
LEAST_DISK, FULL = 1e9, 0.95  # bytes; share of a disk beyond which Ray stores nothing more on it
LEAST_FILES = 4096  # open files of a process; Ray's processes hold many
VARIABLES = ("RAYFED_", "RAY_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")


class Check(NamedTuple):
    """Something that was looked at. status: ok | note | wrong, the last where rayfed cannot work so; found: a sentence."""

    what: str
    status: str
    found: str


def check_machine(runs: Path = Path("runs")) -> list[Check]:
    """Look at libraries, processors, ports and disks; torch is imported for that. runs: the folder of run folders."""
    found = [*check_versions(), check_processors(), *check_gpus(), check_compiler()]
    found += [*check_ports(), *check_disks(runs), *check_limits(), *check_variables()]
    return found


def check_versions() -> Iterator[Check]:
    """Compare the installed libraries with what this version of rayfed needs."""
    import rayfed

    yield Check("python", "ok", f"{sys.version.split()[0]} ({sys.executable})")
    yield Check("rayfed", "ok", f"{rayfed.__version__} ({Path(str(rayfed.__file__)).parent})")
    try:
        needed = requires(PACKAGE) or []
    except PackageNotFoundError:
        yield Check("libraries", "note", f"{PACKAGE} is not installed here, so what it needs cannot be compared")
        return
    extras = [e for e in metadata(PACKAGE).get_all("Provides-Extra") or [] if e not in DEVELOPMENT]
    right, wrong, lacking = compare_requirements(needed, extras)
    yield from (Check("libraries", "wrong", sentence) for sentence in wrong)
    yield Check("libraries", "ok", ", ".join(right))
    if lacking:
        yield Check("extras", "note", f"not installed: {', '.join(lacking)} (pip install '{PACKAGE}[NAME]')")


def compare_requirements(needed: Iterable[str], extras: Sequence[str] = ()) -> tuple[list[str], list[str], list[str]]:
    """Compare requirements as metadata has them with what is installed.

    Returns ("name version" of what is right, a sentence for each that is wrong, those of the extras that lack something).
    """
    from packaging.requirements import Requirement

    right: list[str] = []
    wrong: list[str] = []
    lacking: dict[str, None] = {}
    for text in needed:
        requirement = Requirement(text)
        marker = requirement.marker
        extra = next((e for e in extras if marker and marker.evaluate({"extra": e})), None)
        plain = marker is None or marker.evaluate({"extra": ""})
        if not plain and extra is None:
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            if plain:
                wrong.append(f"{requirement.name} is missing; needed: {requirement}")
            elif extra:
                lacking[extra] = None
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            right += [f"{requirement.name} {installed}"]
        else:
            wrong.append(f"{requirement.name} {installed} found, needed: {requirement.specifier}")
    return list(dict.fromkeys(right)), wrong, list(lacking)


def check_processors() -> Check:
    """Count the cores that this process may use, and the memory."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    text = f"{cores} cores, {memory.total / 1e9:.1f} GB of memory, {memory.available / 1e9:.1f} GB available"
    return Check("processors", "ok" if memory.available > LEAST_DISK else "note", text)


def check_gpus() -> Iterator[Check]:
    """Compare the GPUs that torch can use with those that the driver lists."""
    import torch

    there = _driver_gpus()
    if not torch.cuda.is_available():
        if there:
            yield Check(
                "GPUs", "note", f"the driver lists {', '.join(there)}, but torch {version('torch')} cannot use them"
            )
        else:
            yield Check("GPUs", "ok", "none; clients are computed on CPUs")
        return
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        half = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        yield Check("GPUs", "ok", f"{i}: {about.name}, {about.total_memory / 1e9:.0f} GB, {half}")


def _driver_gpus() -> list[str]:
    """Return the names of the GPUs that NVIDIA's driver lists; none without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        asked = [tool, "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def check_compiler() -> Check:
    """Say whether `resources.executor: compiled` works here."""
    reason = compiler.missing()
    return Check(
        "compiler", "note" if reason else "ok", f"executor: compiled is not available: {reason}" if reason else "there"
    )


def check_ports(ports: dict[int, str] = PORTS) -> Iterator[Check]:
    """Say which of the usual ports of this machine somebody listens on: no run needs any of them free."""
    for port, use in ports.items():
        with socket.socket() as probe:
            probe.settimeout(1)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        yield Check("ports", "ok", f"{port}, {use}: {'somebody listens there' if taken else 'free'}")


def check_disks(runs: Path) -> Iterator[Check]:
    """Look at the room where runs, the cache and Ray's files are."""
    ray = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"
    for what, place in (("runs", runs), ("the cache", cache_folder()), ("Ray's files", ray)):
        where = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
        about = shutil.disk_usage(where)
        text = f"{what} in {place}: {about.free / 1e9:.1f} GB free"
        if not os.access(where, os.W_OK) or not where.is_dir():
            yield Check("disk", "wrong", f"{text}, but {where} cannot be written to")
        elif about.free < LEAST_DISK:
            yield Check("disk", "wrong", f"{text}, needed: {LEAST_DISK / 1e9:.0f} GB; rayfed clean shows what can go")
        elif place is ray and about.used > FULL * about.total:
            yield Check("disk", "note", f"{text}; of a disk that is more than {FULL:.0%} full Ray uses nothing more")
        else:
            yield Check("disk", "ok", text)


def check_limits() -> Iterator[Check]:
    """Look at the limit of open files, and at shared memory, in which Ray keeps objects."""
    try:
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except ImportError:  # not on every system
        return
    few = 0 <= files < LEAST_FILES
    more = f"; a Ray with many actors needs more: ulimit -n {LEAST_FILES}" if few else ""
    yield Check("limits", "note" if few else "ok", f"{'any number of' if files < 0 else files} open files{more}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        more = "; Ray keeps objects on the disk then, which is slower" if free < LEAST_DISK else ""
        yield Check("limits", "note" if more else "ok", f"{free / 1e9:.1f} GB of shared memory{more}")


def check_variables() -> Iterator[Check]:
    """List the environment variables that change how rayfed and Ray work; secrets only by their names."""
    for name in sorted(n for n in os.environ if n.startswith(VARIABLES)):
        value = "is set" if any(word in name for word in SECRETS) else os.environ[name]
        yield Check("variables", "ok", f"{name}: {value}")
