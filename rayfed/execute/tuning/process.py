"""What a process that computes does without: returning memory early, and torch's compiler."""

from __future__ import annotations

import ctypes
import gc
import importlib
import platform
import sys
from contextlib import nullcontext
from typing import Any

TRIM, TOP_PAD, MMAP = -1, -2, -3  # <malloc.h>


def process() -> None:
    """Before this process's first tensors."""
    keep_freed()
    without_compiler()


def keep_freed() -> bool:
    """Tell glibc to give memory back late; False where the C library is another one.

    By default it returns every freed block of more than some hundred kB to the system, and a training step of a model of
    megabytes then spends up to half its time on page faults. 32 MiB is the largest block that glibc can be told to keep.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP, 32 * 2**20) and mallopt(TRIM, 2**31 - 1) and mallopt(TOP_PAD, 64 * 2**20))


def settle() -> None:
    """After a process's imports: hundreds of thousands of objects that the garbage collector need not go through again."""
    gc.freeze()


def give_back() -> None:
    """Freed memory to the system after all: after work that needed more of it than what follows."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def without_compiler() -> None:
    """`torch.func.grad` does not import torch's compiler (some 65 MB, more than a second) only to tell it that it is off."""
    import torch

    if "torch._dynamo" not in sys.modules:
        off = _Later("torch._dynamo.compiled_autograd", _disable=nullcontext)
        vars(torch)["_dynamo"] = _Later("torch._dynamo", compiled_autograd=off)


class _Later:
    """Some names of a module, which is imported once another one is asked for; an import puts it in this one's place."""

    def __init__(self, module: str, **known: Any):
        self._module = module
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)
