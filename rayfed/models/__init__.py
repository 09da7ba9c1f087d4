"""Small networks: batch in, logits out, all of them able to run under `torch.func.vmap(grad)`. One file per family.

No batch normalisation, no in-place writes, no dropout; the classifier is the submodule `head`, registered last.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rayfed.config.own_errors import contained, describe
from rayfed.config.schema import Model, Named
from rayfed.config.user_function import check_function, load_function
from rayfed.errors import ConfigError, nearest
from rayfed.models import families

if TYPE_CHECKING:
    from torch import nn

    from rayfed.data.modalities import Modality

KNOWN: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (sentence, options with defaults)
    "linear": ("softmax regression", {}),
    "mlp": ("multi-layer perceptron with ReLU; hidden: widths", {"hidden": [128]}),
    "cnn": ("McMahan et al. 2017: two 5x5 convolutions (32, 64), 2x2 max pooling, a layer of 512", {}),
    "resnet": ("small residual network with GroupNorm; width, blocks per stage", {"width": 16, "blocks": 1}),
    "factors": ("matrix factorisation, for items: a user's vector times an item's and a bias; dim", {"dim": 16}),
    "ncf": (
        "neural collaborative filtering, for items: an MLP on both vectors; dim, hidden",
        {"dim": 16, "hidden": [32, 16]},
    ),
    "bag": ("for pairs of texts: the mean of words' vectors and a layer on it; words, dim", {"words": 4096, "dim": 64}),
    "psl": (
        "for problems of several objectives: a shared layer, and a network of its own for each; hidden, outputs",
        {"hidden": 256, "outputs": 6},
    ),
    "coaction": (
        "for problems of several objectives: a transformer and task embeddings; dim, depth, heads, outputs, together",
        {"dim": 64, "depth": 2, "heads": 4, "outputs": 6, "together": False},
    ),
    "modalities": (
        "for modalities: late fusion of an encoder for each modality; dim, hidden; absent: skip, zero, learned or refined",
        {"dim": 32, "hidden": 64, "absent": "skip", "present": True},
    ),
    "crossformer": (
        "for modalities: late fusion of a transformer and a decoder of one query for each modality; dim, depth, heads",
        {"dim": 32, "depth": 1, "heads": 2},
    ),
    "autoencoder": (
        "for reconstruction: two convolutions of stride 2, a code of few numbers, and back; width, latent",
        {"width": 16, "latent": 8},
    ),
    "unet": ("for segmentation: a small U-Net with GroupNorm; width, depth (halvings)", {"width": 8, "depth": 2}),
    "grid": (
        "for detection: a one-stage detector with backbone, neck and head, cells of 4x4 pixels; width",
        {"width": 16},
    ),
    "point": ("a point, as many numbers as there are answers, whatever the input; start: of each", {"start": 1}),
    "vit-tiny": ("vision transformer; patch, dim, depth, heads", {"patch": 4, "dim": 64, "depth": 2, "heads": 4}),
}
WORDS = {"absent": ("skip", "zero", "learned", "refined")}  # options that are words
MULTIMODAL = ("modalities", "crossformer")  # networks that are told what a row holds


def names() -> list[tuple[str, str]]:
    """Return (name, one sentence) of every model, for `rayfed tasks`."""
    return [(n, s) for n, (s, _) in KNOWN.items()] + [
        (
            "two_tower",
            "an image and a text tower that know classes by their names; pair: the folder of a CLIP or SigLIP, by default a tiny one",
        ),
        ("hf:NAME_OR_DIR", "a pretrained transformer (texts, images), whole or with an adapter"),
        ("path/to/file.py:function", "your own (classes, input_shape, **options) -> nn.Module"),
    ]


def _own(spec: Named) -> bool:
    return ".py:" in spec.name or spec.name.endswith(".py")


def check(spec: Named) -> list[str]:
    """Return what is wrong with `task.model`, before the data is known and without importing torch; of families with each."""
    if isinstance(spec, Model) and spec.families:
        return [
            p.replace("task.model", key, 1) for key, one in families.models(spec).items() for p in _check_one_of(one)
        ]
    if _own(spec):
        return check_function(spec.name, "task.model", spec.options, 2)
    if spec.name.startswith("hf:"):
        from rayfed.models import pretrained

        return pretrained.check(spec)
    if spec.name not in KNOWN:
        known_names = ", ".join(n for n, _ in names())
        return [f"task.model: {spec.name!r} is unknown{nearest(spec.name, KNOWN)}; known: {known_names}"]
    known = KNOWN[spec.name][1]
    problems = []
    for name, value in spec.options.items():
        if name not in known:
            has = ", ".join(known) or "none"
            problems.append(f"task.model.{name}: unknown option of {spec.name}{nearest(name, known)}; known: {has}")
        elif isinstance(known[name], list):
            if not (isinstance(value, list | tuple) and value and all(_whole(v) for v in value)):
                problems.append(f"task.model.{name}: {value!r} found, allowed: a list of widths >= 1, e.g. [64, 64]")
        elif isinstance(known[name], bool):
            if not isinstance(value, bool):
                problems.append(f"task.model.{name}: {value!r} found, allowed: true, false")
        elif name in WORDS:
            if value not in WORDS[name]:
                allowed = ", ".join(WORDS[name])
                problems.append(
                    f"task.model.{name}: {value!r} found{nearest(str(value), WORDS[name])}, allowed: {allowed}"
                )
        elif not _whole(value):
            problems.append(f"task.model.{name}: {value!r} found, allowed: a whole number >= 1")
    if spec.name in ("vit-tiny", "coaction", "crossformer") and not problems:
        o = {**known, **spec.options}
        if o["dim"] % o["heads"]:
            problems.append(f"task.model.dim: {o['dim']} found, allowed: a multiple of heads ({o['heads']})")
    return problems


def _check_one_of(spec: Named) -> list[str]:
    """Return what is wrong with the model of a family."""
    if spec.name.startswith("hf:"):
        return [
            f"task.model: {spec.name} found, which clients have alone; allowed in families: ready models, or your own"
        ]
    return check(spec)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def fits(spec: Named, input_shape: tuple[int, ...]) -> list[str]:
    """Return why a model of this module cannot take examples of `input_shape`; without torch. A user's own model is not judged."""
    if isinstance(spec, Model) and spec.families:
        each = families.models(spec).items()
        return [p.replace("task.model", key, 1) for key, one in each for p in fits(one, input_shape)]
    if spec.name not in ("cnn", "resnet", "vit-tiny", "autoencoder", "unet", "grid"):
        return []
    shape = "x".join(map(str, input_shape))
    if len(input_shape) != 3:
        return [
            f"task.model: {spec.name} needs images, task.data has examples of shape ({shape}); allowed: linear, mlp"
        ]
    height, width = input_shape[1:]
    if spec.name == "cnn" and min(height, width) < 4:
        return [
            f"task.model: cnn pools twice and needs images of at least 4x4, those of task.data are {height}x{width}"
        ]
    by = 2 ** {**KNOWN["unet"][1], **spec.options}["depth"]
    if spec.name == "unet" and (height % by or width % by):
        return [
            f"task.model.depth: unet halves images so often, and those of task.data are {height}x{width}; allowed: sides that {by} divides"
        ]
    patch = {**KNOWN["vit-tiny"][1], **spec.options}["patch"]
    if spec.name == "vit-tiny" and (height % patch or width % patch):
        allowed = ", ".join(str(p) for p in range(1, min(height, width) + 1) if not (height % p or width % p))
        return [f"task.model.patch: {patch} does not divide images of {height}x{width}; allowed: {allowed}"]
    return []


def imports(spec: Named) -> tuple[str, ...]:
    """Return modules that `build` imports and that take long: whoever will build can import them first."""
    return ("peft",) if spec.name.startswith("hf:") else ()


def build(spec: Named, classes: int, input_shape: tuple[int, ...], modalities: tuple[Modality, ...] = ()) -> nn.Module:
    """Return a module from (B, *input_shape) float to logits (B, classes), freshly drawn from torch's global generator.

    modalities: what an example holds, where it is of several (`rayfed.data.modalities`). ConfigError if there is no such model, or it
    cannot take these inputs.
    """
    problems = check(spec) + fits(spec, input_shape)
    if problems:
        raise ConfigError(problems)
    if _own(spec):
        import torch
        from torch import nn

        make = load_function(spec.name, "task.model")
        try:
            with contained():
                made = make(classes, tuple(input_shape), **spec.options)
                if isinstance(made, nn.Module) and any(nn.parameter.is_lazy(p) for _, p in made.named_parameters()):
                    with torch.no_grad():  # lazy layers take their sizes from a first input
                        made.eval()(torch.zeros(1, *input_shape))
        except Exception as e:
            raise ConfigError(f"task.model: {spec.name} raised {describe(e)}") from e
        if not isinstance(made, nn.Module):
            raise ConfigError(f"task.model: {spec.name} returned {type(made).__name__}, needed: torch.nn.Module")
        return made
    module = importlib.import_module(f"rayfed.models.{spec.name.replace('-', '_')}")
    held: dict[str, Any] = {"modalities": modalities} if spec.name in MULTIMODAL else {}
    network: nn.Module = module.build(classes, tuple(input_shape), **held, **{**KNOWN[spec.name][1], **spec.options})
    return network
