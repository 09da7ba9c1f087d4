"""Gradient checkpointing under `torch.func`: a layer's activations are computed again where its gradient is needed.

PyTorch's own keeps tensors through hooks that transforms refuse. Here a layer is one `autograd.Function` with all its tensors as
inputs, whose backward pass is the vjp of the layer; so it works in `grad`, and in `vmap` of it (Chen et al. 2016 for the idea).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rayfed.models.training_mode import TrainingForward, TrainingStep

Forward = Callable[..., tuple[Tensor, ...]]


def layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers that transformers would checkpoint."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in network.modules() if isinstance(m, GradientCheckpointingLayer)]


def install(network: nn.Module, trained: Sequence[str]) -> int:
    """Checkpoint every such layer of the network, of which `trained` parameters move; return how many there are."""
    found = layers(network)
    moving = {id(p) for n, p in network.named_parameters() if n in set(trained)}
    for layer in found:
        names = tuple(n for n, p in layer.named_parameters() if id(p) in moving)
        layer.forward = partial(_forward, layer, names)
        holder: Any = layer
        holder.during = {"step": None}  # a task puts its own in this place
    return len(found)


def _forward(layer: nn.Module, names: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return type(layer).forward(layer, *args, **kwargs)
    given: list[Tensor] = []
    _map(given.append, (args, kwargs))
    now = dict(layer.named_parameters())  # inside functional_call: what stands in for them
    holder: Any = layer
    step = holder.during["step"]
    first, drawn = (step.draws, [step.key]) if step is not None else (0, [])
    form: list[Any] = []
    kind = given[0].device.type
    half, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = iter(tensors)
        a, k = _map(lambda x: next(inputs), (args, kwargs))
        params = {f"layer.{n}": p for n, p in zip(names, tensors[len(given) :])}
        # Whenever it is computed, it has the draws of the forward pass.
        again = TrainingStep(tensors[-1], draws=first) if step is not None else None
        mode = TrainingForward(again) if again is not None else contextlib.nullcontext()
        with torch.autocast(kind, dtype, enabled=half, cache_enabled=False), mode:
            out = torch.func.functional_call(_Plain(layer), params, a, k)
        if again is not None:
            step.draws = again.draws
        leaves: list[Tensor] = []
        _map(leaves.append, out)
        form[:] = [_map(lambda x: _Hole(), out)]
        return tuple(leaves)

    tensors = given + [now[n] for n in names] + drawn
    made = iter(_Layer.apply(forward, *tensors))
    return _map(lambda hole: next(made), form[0], _Hole)


class _Hole:
    """Stands for a tensor in what a layer gives."""


def _map(f: Callable[[Any], Any], x: Any, of: type = Tensor) -> Any:
    """Return x, nested tuples, lists and dicts, with f of each `of` in it."""
    if isinstance(x, of):
        return f(x)
    if isinstance(x, dict):  # transformers' ModelOutput is one too
        items = {n: _map(f, v, of) for n, v in x.items()}
        return items if type(x) is dict else type(x)(**items)
    if isinstance(x, tuple | list):
        entries = [_map(f, v, of) for v in x]
        return type(x)(*entries) if hasattr(x, "_fields") else type(x)(entries)
    return x


class _Plain(nn.Module):
    """The layer with its own forward pass."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.layer).forward(self.layer, *args, **kwargs)


class _Layer(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Forward, *tensors: Tensor) -> tuple[Tensor, ...]:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tensors = ctx.saved_tensors
        wanted = [i for i, need in enumerate(ctx.needs_input_grad[1:]) if need and tensors[i].is_floating_point()]

        def of(*some: Tensor) -> tuple[Tensor, ...]:
            every = list(tensors)
            for i, x in zip(wanted, some):
                every[i] = x
            return ctx.function(*every)

        pull = torch.func.vjp(of, *(tensors[i] for i in wanted))[1]
        found = dict(zip(wanted, pull(grads)))
        return None, *(found.get(i) for i in range(len(tensors)))
