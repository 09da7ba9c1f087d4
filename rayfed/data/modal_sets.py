"""Sets of several modalities: a constructed one, and the digits in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, digits, modalities, unknown_options
from rayfed.data.modalities import Modality
from rayfed.errors import nearest

if TYPE_CHECKING:
    from rayfed.config.schema import Named

OPTIONS: dict[str, dict[str, Any]] = {  # kind -> options with defaults
    "constructed": {
        "classes": 6,
        "examples": 2000,
        "test": 400,
        "state": 4,
        "noise": 0.5,
        "size": 6,
        "words": 60,
        "length": 8,
        "features": 8,
    },
    "digits": {"cut": "quarters", "sketch": False},
}
CUTS = ("quarters", "halves")


def check(spec: Named) -> list[str]:
    """Return what is wrong with the options."""
    kind = spec.name.partition(":")[2]
    if kind not in OPTIONS:
        known = [f"modalities:{k}" for k in OPTIONS]
        return [f"task.data: {spec.name!r} is unknown{nearest(spec.name, known)}; known: {', '.join(known)}"]
    problems = unknown_options(spec, tuple(OPTIONS[kind]))
    for name, value in spec.options.items():
        default = OPTIONS[kind].get(name)
        if name == "cut" and value not in CUTS:
            problems.append(f"task.data.cut: {value!r} found{nearest(str(value), CUTS)}, allowed: {', '.join(CUTS)}")
        elif name == "sketch" and not isinstance(value, bool):
            problems.append(f"task.data.sketch: {value!r} found, allowed: true, false")
        elif isinstance(default, int | float) and not isinstance(default, bool):
            least = {"noise": 0, "test": 0, "features": 0, "classes": 2, "words": 2}.get(name, 1)
            kinds = int if isinstance(default, int) else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or value < least:
                word = "whole number" if isinstance(default, int) else "number"
                problems.append(f"task.data.{name}: {value!r} found, allowed: a {word} >= {least}")
    return problems


def load(spec: Named, seed: int) -> Dataset:
    """Return the set; the constructed one is drawn from `seed`."""
    kind = spec.name.partition(":")[2]
    o = {**OPTIONS[kind], **spec.options}
    return _constructed(o, seed) if kind == "constructed" else _pieces(o)


def _constructed(o: dict[str, Any], seed: int) -> Dataset:
    """Return rows of a hidden class c and a hidden state z ~ Normal(0, I): u = [mu_c, z], mu_c ~ Normal(0, I). `image`: tanh(B tanh(A u))
    as pixels plus noise; `text`: `length` words drawn with chances softmax(V u); `measurements`: W u plus noise. All three tell of both, so
    that rows can be paired by what they show. `features: 0` leaves measurements out."""
    rng = keys.numpy(keys.key(seed, 0, -1, "modalities/constructed"))
    n, test, classes, state = (int(o[k]) for k in ("examples", "test", "classes", "state"))
    size, words, length, features = (int(o[k]) for k in ("size", "words", "length", "features"))
    d, hidden, noise = 8 + state, 24, float(o["noise"])
    y = rng.permutation(np.arange(n + test) % classes)
    u = np.concatenate([rng.normal(size=(classes, 8))[y], rng.normal(size=(n + test, state))], 1)
    a, b = rng.normal(size=(d, hidden)) / d**0.5, rng.normal(size=(hidden, size * size)) / hidden**0.5
    image = np.tanh(np.tanh(u @ a) @ b * 2) + noise * rng.normal(size=(n + test, size * size))
    chance = u @ rng.normal(size=(d, words)) * (2 / d**0.5)
    drawn = chance[:, None] + rng.gumbel(size=(n + test, length, words))
    told = u @ rng.normal(size=(d, features)) / d**0.5 + noise * rng.normal(size=(n + test, features))
    of = (
        Modality("image", "image", (1, size, size)),
        Modality("text", "text", (length,), words),
        *((Modality("measurements", "measurements", (features,)),) if features else ()),
    )
    values = {"image": image.reshape(-1, 1, size, size), "text": drawn.argmax(-1)} | (
        {"measurements": told} if features else {}
    )
    whole = modalities.part(of, values, y)
    names = tuple(map(str, range(classes)))
    train, held = whole.take(np.arange(test, n + test)), whole.take(np.arange(test))
    return Dataset("modalities:constructed", train, held, classes, names, "modalities", modalities=of)


def _pieces(o: dict[str, Any]) -> Dataset:
    """Return the digits cut into quarters, each a picture of 4x4 pixels, or into a left and a right half, each a sequence of 8 lines of 4;
    sketch: beside them a sequence of 8 numbers, each line of 8 pixels times one fixed direction, under noise of a fifth of their
    deviation."""
    from rayfed.config.schema import Named

    of: list[Modality] = []
    columns: list[dict[str, np.ndarray]] = [{}, {}]
    whole = digits.load(Named(name="digits"), 0)
    halves = {"left": (slice(None), slice(0, 4)), "right": (slice(None), slice(4, 8))}
    quarters = {
        f"{v}_{h}": (slice(r, r + 4), slice(c, c + 4))
        for v, r in (("top", 0), ("bottom", 4))
        for h, c in (("left", 0), ("right", 4))
    }
    in_quarters = o["cut"] == "quarters"
    for name, at in (quarters if in_quarters else halves).items():
        of.append(Modality(name, "image", (1, 4, 4)) if in_quarters else Modality(name, "sequence", (8, 4)))
        for column, part in zip(columns, (whole.train, whole.test), strict=True):
            cut = part.x[:, 0][:, at[0], at[1]]
            column[name] = cut[:, None] if in_quarters else cut
    if o["sketch"]:
        of.append(Modality("sketch", "sequence", (8, 1)))
        rng = keys.numpy(keys.key(0, 0, -1, "modalities/digits sketch"))
        direction = rng.normal(size=(8, 1)) / 8**0.5
        for column, part in zip(columns, (whole.train, whole.test), strict=True):
            told = part.x[:, 0] @ direction
            column["sketch"] = told + 0.2 * told.std() * rng.normal(size=told.shape)
    train, test = (modalities.part(of, c, p.y) for c, p in zip(columns, (whole.train, whole.test), strict=True))
    return Dataset("modalities:digits", train, test, 10, whole.label_names, "modalities", modalities=tuple(of))
