"""Adapters that PEFT has no format of: small modules inside a network, called by forward hooks.

Each is a submodule of the module that it changes, under its kind's name, so that all other names stay the checkpoint's. They
are saved as a tree of tensors (safetensors) with a small JSON file, in a run's `model/adapter/`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.storage.atomic import durable_write
from rayfed.storage.text_files import json_bytes
from rayfed.storage.tree_files import save_tree

if TYPE_CHECKING:
    from pathlib import Path

    from rayfed.config.schema import Adapter
    from rayfed.tree import Tree

HEADS = {"classifier", "score"}  # a network's own classifier


class Bottleneck(nn.Module):
    """h + U relu(D h + d) + u of hidden states h (..., width), D (size, width), U = 0 at the start (Houlsby et al. 2019)."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        self.redraw()

    def redraw(self) -> None:
        self.down.reset_parameters()
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        return (h + self.up(torch.relu(self.down(h)))).to(h.dtype)


class ScaleShift(nn.Module):
    """scale * h + shift of features h (..., width), the identity at the start (Lian et al. 2022, SSF)."""

    def __init__(self, width: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def redraw(self) -> None:
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)

    def forward(self, h: Tensor) -> Tensor:
        return (h * self.scale + self.shift).to(h.dtype)


class VisualPrompt(nn.Module):
    """Tokens (tokens, width) after the first one of a block's input, in the place of those that the block before put there (Jia et al.
    2022, VPT-deep). Each block may have any number, none too: how many stand there is told by the shape of `before`'s.

    before: of the block before, None for the first one; bound: of the uniform draw.
    """

    def __init__(self, width: int, tokens: int, bound: float, before: VisualPrompt | None):
        super().__init__()
        self.tokens, self.bound = nn.Parameter(torch.empty(tokens, width)), bound
        self._before = (before,)  # in a tuple: its parameters are the other block's
        self.redraw()

    def redraw(self) -> None:
        nn.init.uniform_(self.tokens, -self.bound, self.bound)

    def forward(self, h: Tensor) -> Tensor:
        (before,) = self._before
        rest = h[:, 1 if before is None else 1 + len(before.tokens) :]
        return torch.cat([h[:, :1], self.tokens.expand(len(h), -1, -1).to(h.dtype), rest], 1)


def attach(network: Any, adapter: Adapter) -> None:
    """Put the adapter's modules into the network; everything else but its classifier is frozen.

    ConfigError if the network has no blocks, targets match nothing, or its blocks take no further tokens.
    """
    for name, p in network.named_parameters():
        p.requires_grad_(bool(HEADS & set(name.split("."))))
    if adapter.kind == "bottleneck":
        for m, width in _widths(network, _named(network, adapter.targets) or blocks(network)):
            m.add_module(adapter.kind, Bottleneck(width, adapter.size))
            m.register_forward_hook(partial(_after, adapter.kind))
    elif adapter.kind == "ssf":
        for m, width in _widths(network, _named(network, adapter.targets) or _layers(network)):
            m.add_module(adapter.kind, ScaleShift(width))
            m.register_forward_hook(partial(_after, adapter.kind))
    elif adapter.kind == "vpt":
        attach_prompts(network, adapter.counts(len(blocks(network))))


def redraw(network: Any) -> None:
    """Draw all of these modules anew from torch's global generator."""
    for m in network.modules():
        if isinstance(m, Bottleneck | ScaleShift | VisualPrompt):
            m.redraw()


def save(adapter: Adapter, base: str, params: Tree, where: Path) -> None:
    """Write `model.safetensors` (the trained tree with the classifier) and `adapter.json` (base, adapter's settings) into `where`,
    which `init.from` takes."""
    where.mkdir(parents=True, exist_ok=True)
    save_tree(where, "model", tree.to_numpy(params))
    durable_write(where / "adapter.json", json_bytes({"base": base, **adapter.model_dump()}, 1))


def blocks(network: Any) -> list[nn.Module]:
    """Return the transformer's blocks, in their order. ConfigError if there is no list of as many as its config has layers."""
    n = getattr(network.config, "num_hidden_layers", None)
    lists = [m for m in network.modules() if isinstance(m, nn.ModuleList) and len(m) == n]
    if not lists:
        raise ConfigError(f"adapter.kind: {type(network).__name__} has no list of blocks; set adapter.targets")
    return list(lists[0])


def attach_prompts(network: Any, counts: Sequence[int]) -> None:
    """Put visual prompts before the first blocks of an image network, counts[i] tokens before block i.

    ConfigError if the network takes no images, its blocks take no further tokens, or there are more counts than blocks.
    """
    if network.main_input_name != "pixel_values":
        raise ConfigError(
            f"adapter.kind: vpt found, {type(network).__name__} takes no images; allowed for texts: prompt, prefix"
        )
    c, all_blocks = network.config, blocks(network)
    if len(counts) > len(all_blocks):
        raise ConfigError(
            f"adapter.tokens: {len(counts)} numbers found, allowed: one for each of the {len(all_blocks)} blocks of "
            f"{type(network).__name__}"
        )
    patch = getattr(c, "patch_size", None) or 16
    pixels = patch**2 if isinstance(patch, int) else math.prod(patch)
    last: VisualPrompt | None = None
    for (m, width), n in zip(_widths(network, all_blocks), counts, strict=False):
        bound = math.sqrt(6 / (getattr(c, "num_channels", 3) * pixels + width))
        last = VisualPrompt(width, n, bound, last)
        m.add_module("vpt", last)
        m.register_forward_pre_hook(_enter, with_kwargs=True)
    # Whatever pools the last block's tokens sees those that it would see without prompts.
    all_blocks[-1].register_forward_hook(partial(_leave, last))
    try:
        with torch.no_grad():
            network(**_example(network))
    except (RuntimeError, ValueError, TypeError) as e:
        raise ConfigError(
            f"adapter.kind: vpt found, the blocks of {type(network).__name__} take no further tokens ({str(e).splitlines()[0]})"
        ) from None


def _after(kind: str, module: nn.Module, args: Any, out: Any) -> Any:
    adapted = module.get_submodule(kind)
    return (adapted(out[0]), *out[1:]) if isinstance(out, tuple) else adapted(out)


def _enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
    prompt = module.get_submodule("vpt")
    if args:
        return (prompt(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": prompt(kwargs["hidden_states"])}


def _leave(prompt: Any, module: nn.Module, args: Any, out: Any) -> Any:
    h = out[0] if isinstance(out, tuple) else out
    h = torch.cat([h[:, :1], h[:, 1 + len(prompt.tokens) :]], 1)
    return (h, *out[1:]) if isinstance(out, tuple) else h


def _named(network: Any, targets: list[str] | None) -> list[nn.Module]:
    """Return the modules whose names end in one of the targets."""
    wanted = targets or []
    return [m for n, m in network.named_modules() if any(n == t or n.endswith(f".{t}") for t in wanted)]


def _layers(network: Any) -> list[nn.Module]:
    """Return the linear layers and normalisations (of a last dimension) but the classifier's."""
    return [
        m
        for n, m in network.named_modules()
        if m is not network.get_output_embeddings()
        and not HEADS & set(n.split("."))
        and type(m).__name__.endswith(("Linear", "Conv1D", "LayerNorm", "RMSNorm"))
    ]


def _example(network: Any) -> dict[str, Tensor]:
    """Return the smallest input that a network takes."""
    c = network.config
    if network.main_input_name != "pixel_values":
        return {"input_ids": torch.zeros(1, 2, dtype=torch.int64)}
    size = getattr(c, "image_size", None) or 64
    size = (size, size) if isinstance(size, int) else tuple(size)
    dtype = next(p.dtype for p in network.parameters() if p.is_floating_point())
    return {"pixel_values": torch.zeros(1, getattr(c, "num_channels", 3), *size, dtype=dtype)}


def _widths(network: Any, modules: list[nn.Module]) -> list[tuple[nn.Module, int]]:
    """Return each module that a forward pass calls, and the last dimension of what it gives (features; 2 or 3 dimensions).

    ConfigError for one that gives anything else.
    """
    found: dict[nn.Module, int] = {}

    def watch(module: nn.Module, args: Any, out: Any) -> None:
        h = out[0] if isinstance(out, tuple) else out
        if not isinstance(h, Tensor) or h.dim() not in (2, 3):
            raise ConfigError(
                f"adapter.targets: {type(module).__name__} found, allowed: modules that give features (..., d)"
            )
        found[module] = h.shape[-1]

    hooks = [m.register_forward_hook(watch) for m in modules]
    try:
        with torch.no_grad():
            network(**_example(network))
    finally:
        for h in hooks:
            h.remove()
    return [(m, found[m]) for m in modules if m in found]
