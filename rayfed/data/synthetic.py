"""Labelled generators: for tests, for scale, and for heterogeneity that is known exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, unknown_options
from rayfed.errors import nearest

if TYPE_CHECKING:
    from rayfed.config import Named

OPTIONS: dict[str, dict[str, float]] = {
    "blobs": {"classes": 10, "examples": 5000, "test": 1000, "features": 16, "noise": 1.0},
    "images": {"classes": 10, "examples": 5000, "test": 1000, "size": 16, "channels": 1, "noise": 0.3},
    "logistic": {"classes": 10, "clients": 30, "examples": 6000, "features": 60, "alpha": 1.0, "beta": 1.0},
}


def check(spec: Named) -> list[str]:
    kind = spec.name.partition(":")[2]
    if kind not in OPTIONS:
        return [
            f"task.data: synthetic:{kind} is unknown{nearest(kind, OPTIONS)}; known: {', '.join('synthetic:' + k for k in OPTIONS)}"
        ]
    problems = unknown_options(spec, tuple(OPTIONS[kind]))
    for name, value in spec.options.items():
        if name in OPTIONS[kind] and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
            problems.append(f"task.data.{name}: {value!r} found, allowed: a number >= 0")
    return problems


def load(spec: Named, seed: int) -> Dataset:
    """The set drawn from `seed`."""
    kind = spec.name.partition(":")[2]
    o = {**OPTIONS[kind], **spec.options}
    rng = keys.numpy(keys.key(seed, 0, -1, f"synthetic/{kind}"))
    return {"blobs": _blobs, "images": _images, "logistic": _logistic}[kind](o, rng)


def _labels(n: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.arange(n) % classes).astype(np.int64)


def _set(name: str, x: np.ndarray, y: np.ndarray, test: int, classes: int, kind: str) -> Dataset:
    x = x.astype(np.float32)
    return Dataset(
        name, Part(x[test:], y[test:]), Part(x[:test], y[:test]), classes, tuple(map(str, range(classes))), kind
    )


def _blobs(o: dict[str, float], rng: np.random.Generator) -> Dataset:
    """Class c: Normal(mu_c, noise^2 I) with mu_c ~ Normal(0, I)."""
    n, test, classes, d = int(o["examples"]), int(o["test"]), int(o["classes"]), int(o["features"])
    y = _labels(n + test, classes, rng)
    return _set(
        "synthetic:blobs",
        rng.normal(size=(classes, d))[y] + o["noise"] * rng.normal(size=(n + test, d)),
        y,
        test,
        classes,
        "tabular",
    )


def _images(o: dict[str, float], rng: np.random.Generator) -> Dataset:
    """Class c: a smooth random pattern in [0, 1] plus pixel noise, clipped to [0, 1]."""
    n, test, classes, size, ch = (int(o[k]) for k in ("examples", "test", "classes", "size", "channels"))
    y = _labels(n + test, classes, rng)
    grid = np.linspace(0, 1, size)
    waves = rng.normal(size=(classes, ch, 3, 3))
    basis = np.stack([np.cos(np.pi * k * grid) for k in range(3)])
    patterns = np.einsum("kcij,ih,jw->kchw", waves, basis, basis)
    patterns = (patterns - patterns.min((2, 3), keepdims=True)) / np.maximum(
        np.ptp(patterns, (2, 3), keepdims=True), 1e-9
    )
    x = np.clip(patterns[y] + o["noise"] * rng.normal(size=(n + test, ch, size, size)), 0, 1)
    return _set("synthetic:images", x, y, test, classes, "image")


def _logistic(o: dict[str, float], rng: np.random.Generator) -> Dataset:
    """synthetic(alpha, beta), Li et al. 2020 (1812.06127): y = argmax(W_k x + b_k), W_k, b_k ~ N(u_k, 1), u_k ~ N(0, alpha),
    x ~ N(v_k, diag(j^-1.2)), v_k ~ N(B_k, 1), B_k ~ N(0, beta). A tenth of each client's rows is test."""
    clients, d, classes = int(o["clients"]), int(o["features"]), int(o["classes"])
    sizes = np.maximum(10, rng.lognormal(0, 1, clients) * o["examples"] / (clients * np.exp(0.5))).astype(int)
    scale = np.arange(1, d + 1) ** -0.6
    parts = []
    for k, size in enumerate(sizes):
        u, b = rng.normal(0, np.sqrt(o["alpha"])), rng.normal(0, np.sqrt(o["beta"]))
        w, bias, v = rng.normal(u, 1, (d, classes)), rng.normal(u, 1, classes), rng.normal(b, 1, d)
        x = v + rng.normal(size=(size, d)) * scale
        test = np.arange(size) < size // 10
        parts.append((x, (x @ w + bias).argmax(1), np.full(size, str(k)), test))
    x, y, client, test = (np.concatenate(c) for c in zip(*parts, strict=True))
    x, y = x.astype(np.float32), y.astype(np.int64)
    split = np.where(test, "test", "train")
    whole = Part(x, y, client, None, split)
    return Dataset(
        "synthetic:logistic", whole.take(~test), whole.take(test), classes, tuple(map(str, range(classes))), "tabular"
    )
