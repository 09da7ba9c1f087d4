"""Cheaper calls in the place of a recording's kernels, with the same bits.

A result is written over an operand that nobody reads any more: a step's new weights take its gradients' memory, and what is
large is neither allocated nor faulted in again. Max pooling runs in channels-last layout, where it is vectorised on CPUs.
Only memory that the recording has made itself is ever written to.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LARGE = 4096  # elements from which on these calls pay
CHANNELS = 8  # from which on the channels-last pooling is the faster one


class Step(Protocol):
    """What is asked of a recorded call: the names that it reads, and those among them whose memory its result could take."""

    @property
    def reads(self) -> Sequence[str]: ...
    @property
    def fitting(self) -> Sequence[str]: ...


@cache
def _writing() -> dict[Any, tuple[Any, str]]:
    """Return kernel -> (the same one writing to given memory, the keyword for that; "" where it is its first argument).

    Elementwise kernels alone, which may read and write the same memory, and of those with such a kernel of their own.
    """
    a = torch.ops.aten
    made = {
        getattr(packet, of): (getattr(packet, out), "out")
        for packet, of, out in [
            (a.add, "Tensor", "out"),
            (a.sub, "Tensor", "out"),
            (a.mul, "Tensor", "out"),
            (a.div, "Tensor", "out"),
            (a.addcmul, "default", "out"),
            (a.sqrt, "default", "out"),
            (a.neg, "default", "out"),
            (a.tanh, "default", "out"),
            (a.gelu, "default", "out"),
            (a.where, "self", "self_out"),
        ]
    }
    backward = (a.threshold_backward, a.tanh_backward, a.gelu_backward)
    made |= {packet.default: (packet.grad_input, "grad_input") for packet in backward}
    return made | {a.relu.default: (a.relu_.default, "")}


def writing(func: Any) -> tuple[Callable[..., Any], str] | None:
    """Return what calls `func` with its result written to given memory, and the keyword for that memory; None where nothing does."""
    found = _writing().get(func)
    return found and (plain(found[0]), found[1])


def plain(func: Any) -> Callable[..., Any]:
    """Return what a kernel's object calls, without a frame of Python."""
    return getattr(func, "_op", func)


def fits(x: Tensor, out: Tensor) -> bool:
    """Return whether a result like `out` can stand in the memory of `x`, all of it."""
    return out.numel() > LARGE and _form(x) == _form(out)


def _form(x: Tensor) -> Hashable:
    return x.shape, x.stride(), x.dtype, x.device, x.storage_offset(), x.untyped_storage().nbytes()


def written_over(steps: Sequence[Step], returned: Sequence[str], memory: Mapping[str, int]) -> dict[int, str]:
    """Return number of a step -> the operand that its result is written over.

    steps: in order, without what nobody reads; returned: names that outlive them; memory: where each name's tensor was. An
    operand is written over where neither it nor another view of its memory is read later, nor another view of it by this step.
    """
    last: dict[int, int] = {}
    for number, step in enumerate(steps):
        last.update((memory[name], number) for name in step.reads)
    last.update((memory[name], len(steps)) for name in returned)
    found = {}
    for number, step in enumerate(steps):
        for name in step.fitting:
            views = {other for other in step.reads if memory[other] == memory[name]}
            if last[memory[name]] == number and views == {name}:
                found[number] = name
                break
    return found


def kernel(func: Any, args: Sequence[Any]) -> Callable[..., Any]:
    """Return what is called in the place of `func` where it was called with `args`."""
    if func is torch.ops.aten.max_pool2d_with_indices.default and _pools_slowly(args[0]):
        return _max_pool
    return plain(func)


def _pools_slowly(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.shape[1] >= CHANNELS
        and x.numel() > LARGE
        and x.is_contiguous()
        and not x.is_contiguous(memory_format=torch.channels_last)
    )


def _max_pool(x: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    """Return largest values and their places in each plane as the kernel does, found in channels-last layout: nothing is rounded."""
    found = torch.ops.aten.max_pool2d_with_indices.default(x.contiguous(memory_format=torch.channels_last), *how)
    values, places = (y.contiguous() for y in found)
    return values, places
