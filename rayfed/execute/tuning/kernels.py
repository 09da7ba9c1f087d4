"""Which kernels a CPU's or GPU's products and convolutions run on: choices that change speed and last bits, nothing else.

Matrix products: torch's own choice on x86, MKL, makes little use of AVX-512 on AMD's processors; oneDNN makes more of it. torch
hands it float32 products once they may be rounded to bfloat16, which oneDNN does with AMX only: where products keep float32's
precision all the same, it can be taken.

Convolutions: torch takes other kernels where weights are in channels-last memory format.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from rayfed.lazy import torch

if TYPE_CHECKING:
    from rayfed.config.schema import Resources
    from rayfed.tree import Tree

CUBLAS, DETERMINISTIC = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


class Kernels(NamedTuple):
    """`onednn` is taken where it is exact; anything else leaves products to torch."""

    matmul: str = "torch"
    channels_last: bool = False


_active = Kernels()


def from_resources(resources: Resources, device: str = "cpu") -> Kernels:
    """Return what a run's settings ask for on this device; torch's own kernels where they leave the choice open."""
    last = resources.channels_last is True and not resources.vectorised  # vmap's convolutions are grouped ones
    return Kernels("onednn" if resources.matmul == "onednn" and device == "cpu" else "torch", last)


@contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """Compute on these kernels inside the context, whatever surrounds it."""
    global _active
    before, precision = _active, None
    if kernels.matmul != before.matmul and onednn_is_exact():
        precision = torch.get_float32_matmul_precision()
    _active = kernels
    if precision is not None:
        torch.set_float32_matmul_precision("medium" if kernels.matmul == "onednn" else "highest")
    try:
        yield
    finally:
        _active = before
        if precision is not None:
            torch.set_float32_matmul_precision(precision)


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Compute, where `on`, with kernels that give the same bits at every call; torch raises where an operation has none."""
    before = torch.are_deterministic_algorithms_enabled()
    if on == before:
        yield
        return
    missing = on and CUBLAS not in os.environ
    if missing:
        os.environ[CUBLAS] = DETERMINISTIC
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        if missing:
            del os.environ[CUBLAS]


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Compute, on a GPU, with convolutions that keep float32's precision, as products do; nothing changes on a CPU."""
    cudnn = torch.backends.cudnn
    try:
        rounds = device != "cpu" and cudnn.allow_tf32
    except RuntimeError:  # this process has set precisions in torch's newer way
        rounds = False
    if not rounds:
        yield
        return
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = True


def prepare_gpu() -> None:
    """Set this process up, for good, before it begins to use a GPU.

    Convolutions keep float32's precision; `deterministic` gives the same bits from the first call on, before which cuBLAS reads
    a variable.
    """
    torch.backends.cudnn.allow_tf32 = False
    os.environ.setdefault(CUBLAS, DETERMINISTIC)


def in_memory_format(params: Tree) -> Tree:
    """Return a model's parameters with convolutions' weights in the memory format of the active kernels."""
    if not _active.channels_last:
        return params
    last = torch.channels_last
    try:  # `contiguous` would leave the strides of a single channel as they are, and they decide too
        return {n: p.to(memory_format=last) if p.ndim == 4 else p for n, p in params.items()}
    except RuntimeError:  # within a vmap of the method's own
        return params


def has_bfloat16(device: str = "cpu") -> bool:
    """Return whether a device has units for products of bfloat16 numbers; without them such products are slow, not wrong."""
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)


@cache
def onednn_is_exact() -> bool:
    """Return whether torch hands this CPU's float32 products to oneDNN on request, and they keep float32's precision."""
    if not torch.backends.mkldnn.is_available():
        return False
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(96, 512, generator=draw), torch.randn(512, 96, generator=draw)
    right, plain = a.double() @ b.double(), a @ b
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # this process has set precisions in torch's newer way
        return False
    torch.set_float32_matmul_precision("medium")
    try:
        found, batched = a @ b, torch.stack([a, a]) @ b.expand(2, 512, 96)
    finally:
        torch.set_float32_matmul_precision(before)
    errors = [float((x - right).abs().max() / right.abs().max()) for x in (found, *batched)]
    return not torch.equal(found, plain) and all(e < 1e-5 for e in errors)
