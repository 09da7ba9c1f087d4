"""Labelled generators: for tests, for scale, and for heterogeneity that is known exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, unknown_options
from rayfed.data.interactions import leave_one_out
from rayfed.errors import nearest

if TYPE_CHECKING:
    from rayfed.config.schema import Named

OPTIONS: dict[str, dict[str, int | float]] = {  # kind -> options with defaults; whole numbers stay whole
    "blobs": {"classes": 10, "examples": 5000, "test": 1000, "features": 16, "noise": 1.0, "separation": 1.0},
    "images": {"classes": 10, "examples": 5000, "test": 1000, "size": 16, "channels": 1, "noise": 0.3},
    "tastes": {"users": 300, "items": 400, "each": 30, "groups": 4, "taste": 8.0, "skew": 1.0},
    "multilabel": {"labels": 6, "examples": 3000, "test": 600, "features": 16, "noise": 1.0, "share": 0.3},
    "logistic": {"classes": 10, "clients": 30, "examples": 6000, "features": 60, "alpha": 1.0, "beta": 1.0},
}
LEAST = {
    "classes": 2,
    "labels": 2,
    "share": 0,
    "each": 3,
    "taste": 0,
    "skew": 0,
    "test": 0,
    "noise": 0,
    "separation": 0,
    "alpha": 0,
    "beta": 0,
    "size": 2,
}  # others: 1


def check(spec: Named) -> list[str]:
    """Return what is wrong with the options' names, types and ranges."""
    kind = spec.name.partition(":")[2]
    if kind not in OPTIONS:
        known = [f"synthetic:{k}" for k in OPTIONS]
        return [f"task.data: {spec.name!r} is unknown{nearest(spec.name, known)}; known: {', '.join(known)}"]
    problems = unknown_options(spec, tuple(OPTIONS[kind]))
    for name, value in spec.options.items():
        if name not in OPTIONS[kind]:
            continue
        whole, least = isinstance(OPTIONS[kind][name], int), LEAST.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value < least:
            word = "whole number" if whole else "number"
            problems.append(f"task.data.{name}: {value!r} found, allowed: a {word} >= {least}")
    o = {**OPTIONS[kind], **spec.options}
    if not problems and kind == "tastes" and o["each"] >= o["items"]:
        problems.append(f"task.data.each: {o['each']} found, allowed: less than the {o['items']} items")
    if not problems and o.get("share", 0.5) >= 1:
        problems.append(f"task.data.share: {o['share']!r} found, allowed: below 1")
    return problems or _too_large(o, kind)


def _too_large(o: Mapping[str, Any], kind: str) -> list[str]:
    """Return a sentence where the rows, or the parameters that they are drawn from, do not fit into this machine's memory."""
    import psutil

    if kind == "tastes":
        o = {**o, "examples": o["users"], "features": 2 * o["items"]}
    width = o["channels"] * o["size"] ** 2 if kind == "images" else o["features"]
    rows = max(o["examples"] + o.get("test", 0), 10 * o.get("clients", 0)) + o.get("classes", 0)
    asked, free = 8 * rows * width, psutil.virtual_memory().available
    if asked <= free:
        return []
    return [
        f"task.data: synthetic:{kind} of {rows:,} rows of {width:,} numbers takes {asked / 1e9:,.0f} GB, {free / 1e9:,.0f} GB of memory "
        "are free here"
    ]


def load(spec: Named, seed: int) -> Dataset:
    """Return the set drawn from `seed`."""
    kind = spec.name.partition(":")[2]
    o = {**OPTIONS[kind], **spec.options}
    rng = keys.numpy(keys.key(seed, 0, -1, f"synthetic/{kind}"))
    makers = {"blobs": _blobs, "images": _images, "logistic": _logistic, "multilabel": _multilabel, "tastes": _tastes}
    return makers[kind](o, rng)


def _labels(n: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.arange(n) % classes).astype(np.int64)


def _set(name: str, x: np.ndarray, y: np.ndarray, test: int, classes: int, kind: str) -> Dataset:
    x = x.astype(np.float32)
    train, held = Part(x[test:], y[test:]), Part(x[:test], y[:test])
    return Dataset(name, train, held, classes, tuple(map(str, range(classes))), kind)


def _blobs(o: dict[str, int | float], rng: np.random.Generator) -> Dataset:
    """Return the set whose class c is Normal(separation mu_c, noise^2 I) with mu_c ~ Normal(0, I)."""
    n, test, classes, d = int(o["examples"]), int(o["test"]), int(o["classes"]), int(o["features"])
    y = _labels(n + test, classes, rng)
    centres = rng.normal(size=(classes, d))
    x = o["separation"] * centres[y] + o["noise"] * rng.normal(size=(n + test, d))
    return _set("synthetic:blobs", x, y, test, classes, "tabular")


def _images(o: dict[str, int | float], rng: np.random.Generator) -> Dataset:
    """Return the set whose class c is a smooth random pattern (a sum of nine cosines) plus pixel noise, in [0, 1]."""
    n, test, classes, size, ch = (int(o[k]) for k in ("examples", "test", "classes", "size", "channels"))
    y = _labels(n + test, classes, rng)
    basis = np.cos(np.pi * np.arange(3)[:, None] * np.linspace(0, 1, size))
    pattern = np.einsum("kcij,ih,jw->kchw", rng.normal(size=(classes, ch, 3, 3)), basis, basis)
    low = pattern.min((2, 3), keepdims=True)
    pattern = (pattern - low) / np.maximum(np.ptp(pattern, (2, 3), keepdims=True), 1e-9)
    noise = rng.standard_normal(size=(n + test, ch, size, size), dtype=np.float32)
    x = np.clip(pattern.astype(np.float32)[y] + np.float32(o["noise"]) * noise, 0, 1)
    return _set("synthetic:images", x, y, test, classes, "image")


def _logistic(o: dict[str, int | float], rng: np.random.Generator) -> Dataset:
    """Return synthetic(alpha, beta) of FedProx (Li et al. 2020, 1812.06127), natural clients k = 0, 1, ...

    y = argmax(W_k x + b_k), W_k, b_k ~ N(u_k, 1), u_k ~ N(0, alpha), x ~ N(v_k, diag(j^-1.2)), v_k ~ N(B_k, 1),
    B_k ~ N(0, beta); alpha and beta are variances. Sizes are log-normal and sum to about `examples`, at least 10; a tenth of
    each client's rows is test.
    """
    clients, d, classes = int(o["clients"]), int(o["features"]), int(o["classes"])
    share = rng.lognormal(0, 1, clients)
    sizes = np.maximum(10, share / share.sum() * o["examples"]).astype(int)
    scale = np.arange(1, d + 1) ** -0.6
    parts = []
    for k, size in enumerate(sizes):
        u, b = rng.normal(0, np.sqrt(o["alpha"])), rng.normal(0, np.sqrt(o["beta"]))
        w, bias, v = rng.normal(u, 1, (d, classes)), rng.normal(u, 1, classes), rng.normal(b, 1, d)
        x = v + rng.normal(size=(size, d)) * scale
        parts.append((x, (x @ w + bias).argmax(1), np.full(size, str(k), dtype="U12"), np.arange(size) < size // 10))
    x, y, client, test = (np.concatenate(c) for c in zip(*parts, strict=True))
    whole = Part(x.astype(np.float32), y.astype(np.int64), client, None, np.where(test, "test", "train"))
    return Dataset(
        "synthetic:logistic", whole.take(~test), whole.take(test), classes, tuple(map(str, range(classes))), "tabular"
    )


def _multilabel(o: dict[str, int | float], rng: np.random.Generator) -> Dataset:
    """Return the set whose label k is there where w_k x + noise e > b_k, with x, w_k, e ~ Normal(0, I), w_k of length 1, and b_k such that
    a share of the rows between `share` / 2 and 3 `share` / 2 has it."""
    n, test, labels, d = int(o["examples"]), int(o["test"]), int(o["labels"]), int(o["features"])
    x, w = rng.normal(size=(n + test, d)), rng.normal(size=(d, labels))
    score = x @ (w / np.linalg.norm(w, axis=0)) + o["noise"] * rng.normal(size=(n + test, labels))
    wanted = o["share"] * rng.uniform(0.5, 1.5, labels)
    y = score > [np.quantile(s, max(0.0, 1 - q)) for s, q in zip(score.T, wanted, strict=True)]
    train, held = (
        Part(x[test:].astype(np.float32), y[test:].astype(np.int64)),
        Part(x[:test].astype(np.float32), y[:test].astype(np.int64)),
    )
    names = tuple(f"label {k}" for k in range(labels))
    return Dataset("synthetic:multilabel", train, held, labels, names, "tabular")


def _tastes(o: dict[str, int | float], rng: np.random.Generator) -> Dataset:
    """Return who took what of users and items that each belong to one of `groups`: a user takes `each` different items one after another,
    item number r in popularity with a chance in proportion to r^-skew, `1 + taste` times as likely where it is of the user's group."""
    users, items, groups = int(o["users"]), int(o["items"]), int(o["groups"])
    popular = rng.permutation(np.arange(1, items + 1) ** -float(o["skew"]))
    of_item, of_user = rng.permutation(np.arange(items) % groups), rng.permutation(np.arange(users) % groups)
    chance = popular * (1 + o["taste"] * (of_user[:, None] == of_item))
    race = rng.exponential(size=(users, items)) / chance  # who comes first was drawn first
    taken = np.argsort(race, 1)[:, : int(o["each"])]
    user = np.repeat(np.arange(users), taken.shape[1])
    return leave_one_out("synthetic:tastes", user, taken.reshape(-1))
