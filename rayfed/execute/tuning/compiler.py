"""Programs compiled to machine code by torch's AOTInductor, kept on disk and made by a process of their own.

A package (`NAME.pt2`) holds the code for a program's text on one kind of CPU, one torch and one number of threads; runs, seeds,
arms and sweeps share it. The process that computes only loads it: it imports none of torch's compiler, and an interrupted
compilation leaves nothing behind but a hidden folder. Whoever needs the same package meanwhile waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rayfed.lazy import torch

FORM = 1  # of packages; another one is not read
ENOUGH_S = 1800  # a compilation that takes longer is given up
MAIN = "rayfed.execute.tuning.compile_program"


class CannotCompile(Exception):
    """A program of which there is no package; the text says why."""


def missing() -> str:
    """Return what this machine lacks to compile, "" if nothing."""
    if platform.system() != "Linux":
        return f"compiled code is made on Linux, this is {platform.system()}"
    wanted = os.environ.get("CXX") or "g++"
    return "" if shutil.which(wanted) else f"there is no C++ compiler ({wanted}) on this machine"


def load(text: str, digest: str, folder: Path) -> Any:
    """Return the loaded package of a program, compiled first where the folder has none: `run(tensors)` -> list of tensors.

    CannotCompile where there is none to be had.
    """
    path = folder / f"{digest}-{_where()}-{torch.get_num_threads()}.pt2"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_whole(path):
            with _alone(folder / f".{path.stem}.lock") as alone:
                if not _is_whole(path):
                    for left in folder.glob(f".{path.stem}-*") if alone else ():  # by a process that was killed
                        shutil.rmtree(left, ignore_errors=True)
                    _compile(text, path)
        return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
    except (OSError, RuntimeError) as error:
        raise CannotCompile(f"{type(error).__name__}: {str(error).strip()[:500]}") from None


@cache
def _where() -> str:
    """Return a name of what machine code depends on beside its program."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((x.partition(":")[2].split() for x in lines if x.startswith(("flags", "Features"))), [])
        known = [FORM, torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), sorted(flags)]
        return hashlib.blake2b(repr(known).encode(), digest_size=8).hexdigest()
    raise CannotCompile("/proc/cpuinfo cannot be read")


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as package:
            return package.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold a lock that ends with its process, however that ends; yields whether the file system knows such."""
    with open(path, "w", encoding="utf-8") as file:
        locked = False
        with contextlib.suppress(OSError), _unlimited():
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        yield locked


def _compile(text: str, path: Path) -> None:
    """Write the package of a program; whole or not at all."""
    if reason := missing():
        raise CannotCompile(reason)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as work:
        source, made = Path(work) / "program.json", Path(work) / "program.pt2"
        source.write_text(text, encoding="utf-8")
        own = {"TORCHINDUCTOR_CACHE_DIR": work, "TMPDIR": work, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        root = str(Path(__file__).parents[3])
        with _unlimited():
            done = subprocess.run(
                [sys.executable, "-m", MAIN, str(source), str(made), str(torch.get_num_threads())],
                env={**os.environ, **own, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=ENOUGH_S,
                stdin=subprocess.DEVNULL,
            )
        if done.returncode or not _is_whole(made):
            raise CannotCompile((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:500])
        with open(made, "rb") as file:
            os.fsync(file.fileno())
        os.replace(made, path)


@contextlib.contextmanager
def _unlimited() -> Iterator[None]:
    """Stop the clock of a time limit for clients (a timer's signal), which is not about compiling."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left, again = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        if left:
            signal.setitimer(signal.ITIMER_REAL, left, again)
