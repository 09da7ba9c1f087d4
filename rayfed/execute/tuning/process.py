"""Settings of a process that computes: it keeps freed memory, and imports torch's compiler only when it is needed.

All of them last as long as the process. They are for processes of the project's own: actors, and the command's own.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import platform
import sys
from contextlib import nullcontext
from typing import Any

TRIM, TOP_PAD, MMAP = -1, -2, -3  # <malloc.h>


def prepare() -> None:
    """Set this process up; to be called before its first tensors."""
    keep_freed_memory()
    defer_compiler()


def keep_freed_memory() -> bool:
    """Make glibc give memory back late; return False where the C library is another one.

    By default it returns every freed block of more than some hundred kB to the system, and a training step of a model of
    megabytes then spends up to half its time on page faults. 32 MiB is the largest block that glibc can be made to keep.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP, 32 * 2**20) and mallopt(TRIM, 2**31 - 1) and mallopt(TOP_PAD, 64 * 2**20))


def freeze_imports() -> None:
    """Spare the garbage collector the hundreds of thousands of objects that imports have left; to be called after them."""
    gc.freeze()


def release_memory() -> None:
    """Give freed memory back to the system: after work that needed more of it than what follows."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def defer_compiler() -> None:
    """Keep `torch.func.grad` from importing torch's compiler (some 65 MB, more than a second) only to learn that it is off."""
    import torch

    if "torch._dynamo" not in sys.modules:
        off = _Deferred("torch._dynamo.compiled_autograd", _disable=nullcontext)
        vars(torch)["_dynamo"] = _Deferred("torch._dynamo", compiled_autograd=off)


class _Deferred:
    """Stands for a module of which some names are known; another name imports the module, which then takes this one's place."""

    def __init__(self, module: str, **known: Any):
        self._module = module
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)
