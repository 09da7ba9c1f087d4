"""Small networks: batch in, logits out, all of them able to run under `torch.func.vmap(grad)`. One file per family.

No batch normalisation, no in-place writes, no dropout; the classifier is the submodule `head`, registered last.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import nn

    from rayfed.config import Named

KNOWN: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (sentence, options with defaults)
    "linear": ("softmax regression", {}),
    "mlp": ("multi-layer perceptron with ReLU; hidden: widths", {"hidden": [128]}),
    "cnn": ("McMahan et al. 2017: two 5x5 convolutions (32, 64), 2x2 max pooling, a layer of 512", {}),
    "resnet": ("small residual network with GroupNorm; width, blocks per stage", {"width": 16, "blocks": 1}),
    "vit-tiny": ("vision transformer; patch, dim, depth, heads", {"patch": 4, "dim": 64, "depth": 2, "heads": 4}),
}


def names() -> list[tuple[str, str]]:
    """(name, one sentence) of every model, for `rayfed tasks`."""
    return [(n, s) for n, (s, _) in KNOWN.items()] + [
        ("path/to/file.py:function", "your own (classes, input_shape, **options) -> nn.Module")
    ]


def check(spec: Named) -> list[str]:
    """What is wrong with `task.model`."""
    if spec.name.partition(":")[0].endswith(".py"):
        from rayfed.data.own import function

        try:
            function(spec.name, "task.model")
        except ConfigError as e:
            return e.problems
        return []
    if spec.name.startswith("hf:"):
        return [
            f"task.model: {spec.name!r} is not available yet (pretrained transformers come with adapters; available: {', '.join(KNOWN)})"
        ]
    if spec.name not in KNOWN:
        return [
            f"task.model: {spec.name!r} is unknown{nearest(spec.name, KNOWN)}; known: {', '.join(n for n, _ in names())}"
        ]
    known = KNOWN[spec.name][1]
    problems = []
    for name, value in spec.options.items():
        if name not in known:
            problems.append(
                f"task.model.{name}: unknown option of {spec.name}{nearest(name, known)}; known: {', '.join(known) or 'none'}"
            )
        elif name == "hidden":
            if not (isinstance(value, list) and value and all(isinstance(v, int) and v > 0 for v in value)):
                problems.append(f"task.model.hidden: {value!r} found, allowed: a list of widths >= 1, e.g. [64, 64]")
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"task.model.{name}: {value!r} found, allowed: a whole number >= 1")
    if spec.name == "vit-tiny":
        o = {**known, **{k: v for k, v in spec.options.items() if isinstance(v, int)}}
        if o["heads"] < 1 or o["dim"] % o["heads"]:
            problems.append(f"task.model.dim: {o['dim']} is not a multiple of heads ({o['heads']})")
    return problems


def build(spec: Named, classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """A module from (B, *input_shape) float to logits (B, classes), freshly drawn from torch's global generator."""
    if spec.name.partition(":")[0].endswith(".py"):
        from rayfed.data.own import function

        return function(spec.name, "task.model")(classes, input_shape, **spec.options)
    module = importlib.import_module(f"rayfed.models.{spec.name.replace('-', '_')}")
    return module.build(classes, tuple(input_shape), **{**KNOWN[spec.name][1], **spec.options})
