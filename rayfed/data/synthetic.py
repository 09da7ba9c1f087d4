"""Labelled generators: for tests, for scale, and for heterogeneity that is known exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
    "shapes": {"classes": 24, "examples": 2400, "test": 960, "size": 16, "noise": 0.3, "shift": 1.0},
    "tastes": {"users": 300, "items": 400, "each": 30, "groups": 4, "taste": 8.0, "skew": 1.0},
    "multilabel": {"labels": 6, "examples": 3000, "test": 600, "features": 16, "noise": 1.0, "share": 0.3},
    "domains": {"domains": 4, "classes": 5, "examples": 2000, "test": 800, "features": 16, "noise": 1.0, "shift": 1.0},
    "pairs": {"topics": 5, "examples": 1500, "test": 300, "words": 60, "length": 10, "common": 0.3},
    "sites": {"examples": 2400, "test": 1200, "size": 12, "noise": 0.35, "shift": 1.0},
    "quadratics": {"clients": 5, "each": 8, "features": 15, "shift": 1.0},
    "logistic": {"classes": 10, "clients": 30, "examples": 6000, "features": 60, "alpha": 1.0, "beta": 1.0},
}
LEAST = {
    "classes": 2,
    "labels": 2,
    "share": 0,
    "shift": 0,
    "each": 3,
    "length": 2,
    "common": 0,
    "taste": 0,
    "skew": 0,
    "test": 0,
    "noise": 0,
    "separation": 0,
    "alpha": 0,
    "beta": 0,
    "size": 2,
}  # others: 1
COLOURS = {
    "red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.15, 0.25, 0.95), "yellow": (0.95, 0.9, 0.1),
    "purple": (0.6, 0.1, 0.8), "orange": (1.0, 0.55, 0.05),
}  # fmt: skip
SHAPES = {  # name -> whether points (u, v), in units of the shape's size, are inside
    "circle": lambda u, v: u**2 + v**2 < 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.85,
    "triangle": lambda u, v: (v < 0.8) & (2 * abs(u) < v + 1.1),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1),
    "ring": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.4),
}


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
    if not problems and kind == "pairs" and o["length"] > o["words"]:
        problems.append(f"task.data.length: {o['length']} found, allowed: at most the {o['words']} words of a topic")
    if not problems and kind == "shapes" and o["classes"] > len(COLOURS) * len(SHAPES):
        problems.append(f"task.data.classes: {o['classes']} found, allowed: at most {len(COLOURS) * len(SHAPES)}")
    if not problems and o.get("common", 0.5) >= 1:
        problems.append(f"task.data.common: {o['common']!r} found, allowed: below 1")
    if not problems and o.get("share", 0.5) >= 1:
        problems.append(f"task.data.share: {o['share']!r} found, allowed: below 1")
    return problems or _too_large(o, kind)


def _too_large(o: Mapping[str, Any], kind: str) -> list[str]:
    """Return a sentence where the rows, or the parameters that they are drawn from, do not fit into this machine's memory."""
    import psutil

    if kind == "tastes":
        o = {**o, "examples": o["users"], "features": 2 * o["items"]}
    if kind == "quadratics":
        o = {**o, "examples": o["clients"] * o["each"]}
    if kind == "sites":
        o = {**o, "features": 2 * o["size"] ** 2}
    if kind == "pairs":
        o = {**o, "features": 2 * o["words"]}
    if kind == "shapes":
        o = {**o, "features": 2 * 3 * o["size"] ** 2}
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
    makers = {
        "blobs": _blobs,
        "images": _images,
        "logistic": _logistic,
        "domains": _domains,
        "sites": _sites,
        "shapes": _shapes,
        "pairs": _pairs,
        "multilabel": _multilabel,
        "tastes": _tastes,
        "quadratics": _quadratics,
    }
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


def _shapes(o: dict[str, int | float], rng: np.random.Generator) -> Dataset:
    """Return pictures of coloured shapes, called "red circle": class k has colour k mod 6 and shape (k // 6 + k) mod 5, so that any dozen
    has all colours and shapes. Place and size are random; shift: how grey the background is and how far colours go astray."""
    n, test, classes, size = (int(o[k]) for k in ("examples", "test", "classes", "size"))
    y = _labels(n + test, classes, rng)
    at = np.arange(classes)
    colour, shape = at % len(COLOURS), (at // len(COLOURS) + at) % len(SHAPES)
    rows = len(y)
    radius, centre = rng.uniform(0.22, 0.36, (rows, 1, 1)), rng.uniform(-0.12, 0.12, (2, rows, 1, 1))
    grid = np.linspace(-0.5, 0.5, size)
    u, v = (grid[None, None, :] - centre[0]) / radius, (grid[None, :, None] - centre[1]) / radius
    inside = np.zeros((rows, size, size), bool)
    for s, holds in enumerate(SHAPES.values()):
        mine = shape[y] == s
        inside[mine] = holds(u[mine], v[mine])
    paint = np.array(list(COLOURS.values()))[colour[y]] + 0.12 * o["shift"] * rng.normal(size=(rows, 3))
    ground = 0.5 * o["shift"] * rng.uniform(size=(rows, 1, 1, 1)) + np.zeros((1, 3, size, size))
    x = np.where(inside[:, None], paint[:, :, None, None], ground)
    x = np.clip(x + o["noise"] * rng.standard_normal(size=x.shape, dtype=np.float32), 0, 1)
    made = _set("synthetic:shapes", x, y, test, classes, "image")
    names = tuple(f"{[*COLOURS][c]} {[*SHAPES][s]}" for c, s in zip(colour, shape, strict=True))
    return replace(made, label_names=names)


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


def _domains(o: dict[str, int | float], rng: np.random.Generator) -> Dataset:
    """Return the set whose domains see the same Gaussian classes each turned and moved its own way: x = Q_k (1.5 mu_c +
    noise e) + shift b_k,
    mu_c, b_k, e ~ Normal(0, I), Q_k the orthogonal part of I + 0.3 shift G_k, G_k ~ Normal(0, 1). A domain is a natural client, too."""
    n, test, classes, d, domains = (int(o[k]) for k in ("examples", "test", "classes", "features", "domains"))
    centres, y = rng.normal(size=(classes, d)), _labels(n + test, classes, rng)
    domain = np.concatenate([rng.permutation(np.arange(many) % domains) for many in (test, n)])
    x = 1.5 * centres[y] + o["noise"] * rng.normal(size=(n + test, d))
    for k in range(domains):
        q, r = np.linalg.qr(np.eye(d) + 0.3 * o["shift"] * rng.normal(size=(d, d)))
        moved = x[domain == k] @ (q * np.sign(np.diag(r))).T
        x[domain == k] = moved + o["shift"] * rng.normal(size=d)
    names = np.array([f"domain {k}" for k in range(domains)])[domain]
    split = np.where(np.arange(n + test) < test, "test", "train")
    whole = Part(x.astype(np.float32), y, names, names, split)
    held = np.arange(test)
    return Dataset(
        "synthetic:domains",
        whole.take(np.arange(test, n + test)),
        whole.take(held),
        classes,
        tuple(map(str, range(classes))),
        "tabular",
    )


def _pairs(o: dict[str, int | float], rng: np.random.Generator) -> Dataset:
    """Return questions and passages of topics, each a natural client. A passage is `length` different ideas of its topic, of which a share
    `common` is common to all topics; its question asks for half of these. An idea has one word in questions and another one in passages,
    so that which words belong together has to be learned; a topic has `words` ideas of its own, and as many are common to all."""
    topics, n, test, words, length = (int(o[k]) for k in ("topics", "examples", "test", "words", "length"))
    topic = np.concatenate([rng.permutation(np.arange(many) % topics) for many in (test, n)])
    shared = round(o["common"] * length)
    own = np.argsort(rng.random((n + test, words)), 1)[:, : length - shared] + words * (1 + topic[:, None])
    both = np.argsort(rng.random((n + test, words)), 1)[:, :shared]
    ideas = np.concatenate([own, both], 1)
    ideas = np.take_along_axis(ideas, np.argsort(rng.random(ideas.shape), 1), 1)
    x = np.full((n + test, 2, length), -1, np.int32)
    x[:, 0, : (length + 1) // 2] = 2 * ideas[:, : (length + 1) // 2]
    x[:, 1] = 2 * ideas + 1
    names = np.array([f"topic {k}" for k in range(topics)])
    whole = Part(x, topic, names[topic], None, np.where(np.arange(n + test) < test, "test", "train"))
    return Dataset(
        "synthetic:pairs",
        whole.take(np.arange(test, n + test)),
        whole.take(np.arange(test)),
        topics,
        tuple(names),
        "pairs",
    )


SITES = {"small": 0.05, "medium": 0.1, "large": 0.25, "largest": 0.6}  # share of the rows of each, one more is shifted


def _sites(o: dict[str, int | float], rng: np.random.Generator) -> Dataset:
    """Return pictures with two labels of five sites, each a natural client: four of unequal size, and `shifted`, as large as `large`, whose
    pictures have less contrast, are brighter and noisier. A label is a smooth pattern that a picture has or has not, beside a background of
    its own. Column `positive`: of a site's training rows those without a label over those with it. Test rows: as many for each site."""
    n, test, size = (int(o[k]) for k in ("examples", "test", "size"))
    names = [*SITES, "shifted"]
    share = np.array([*SITES.values(), SITES["large"]])
    many = np.maximum(10, np.rint(share * n)).astype(int)
    site = np.concatenate([np.repeat(np.arange(5), many), np.arange(test) % 5])
    is_test = np.arange(len(site)) >= many.sum()
    basis = np.cos(np.pi * np.arange(4)[:, None] * np.linspace(0, 1, size))
    pattern = np.einsum("kij,ih,jw->khw", rng.normal(size=(2, 4, 4)), basis, basis)
    pattern /= np.abs(pattern).max((1, 2), keepdims=True)
    y = (rng.random((len(site), 2)) < [0.5, 0.3]).astype(np.int64)
    back = np.einsum("nij,ih,jw->nhw", rng.normal(size=(len(site), 3, 3)), basis[:3], basis[:3])
    x = 0.5 + 0.15 * np.einsum("nk,khw->nhw", y, pattern) + 0.04 * back
    away = (site == 4)[:, None, None] * o["shift"]
    x = x * (1 - 0.4 * away) + 0.25 * away + (o["noise"] * (1 + 0.5 * away)) * rng.normal(size=x.shape)
    positive = np.ones((len(site), 2), np.float32)
    for k in range(5):
        mine = (site == k) & ~is_test
        has = y[mine].sum(0)
        positive[site == k] = (mine.sum() - has) / (has + 1e-6)
    client, split = np.array(names)[site], np.where(is_test, "test", "train")
    whole = Part(np.clip(x, 0, 1).astype(np.float32)[:, None], y, client, client, split, {"positive": positive})
    return Dataset("synthetic:sites", whole.take(~is_test), whole.take(is_test), 2, ("first", "second"), "image")


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


def _quadratics(o: dict[str, int | float], rng: np.random.Generator) -> Dataset:
    """Return the set whose client i has `each` rows, y the same point of each: its shift ~ Normal(0, shift^2 I), less the mean of all, so
    that they sum to zero. x is 0. Test rows: each client's once."""
    n, each, d = int(o["clients"]), int(o["each"]), int(o["features"])
    shifts = rng.normal(size=(n, d))
    shifts = ((shifts - shifts.mean(0)) * o["shift"]).astype(np.float32)
    client = np.repeat(np.array([str(i) for i in range(n)]), each)
    train = Part(np.zeros((n * each, 1), np.float32), np.repeat(shifts, each, 0), client)
    names = tuple(f"z{k}" for k in range(d))
    return Dataset("synthetic:quadratics", train, Part(np.zeros((n, 1), np.float32), shifts), d, names, "tabular")


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
