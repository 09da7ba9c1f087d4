"""Constructed pictures of real digits (scikit-learn's): anomalies, strokes with masks, and scenes of several digits with boxes.

What is in a picture is real handwriting; where it stands, what it stands on and how a site sees it is drawn from the seed. Pictures for
training have digits of the training rows alone, those for tests of the test rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, digits
from rayfed.errors import nearest

if TYPE_CHECKING:
    from rayfed.config.schema import Named

# kind -> option -> (default, least, most); whole numbers stay whole
OPTIONS: dict[str, dict[str, tuple[float, float, float]]] = {
    "anomalies": {"normal": (5, 1, 9)},
    "strokes": {
        "examples": (600, 1, 10**6), "test": (240, 0, 10**6), "size": (24, 20, 256), "sites": (12, 1, 10**4),
        "shift": (1.0, 0, 3), "noise": (0.1, 0, 1),
    },
    "objects": {
        "examples": (600, 1, 10**6), "test": (240, 0, 10**6), "size": (32, 20, 256), "objects": (3, 1, 20),
        "classes": (10, 2, 10), "noise": (0.05, 0, 1), "shift": (0.0, 0, 1), "partners": (0.0, 0, 1),
    },
}  # fmt: skip
REGIONS = ("whole", "core", "stroke")  # of a mask's values 1, 2, 3, each within the one before
WEATHER = ("clear", "dark", "blurred", "noisy")
TRIES = 30  # places that are drawn for an object before it is left out


def check(spec: Named) -> list[str]:
    """Return what is wrong with the options' names, types and ranges."""
    kind = spec.name.partition(":")[2]
    known = [f"scenes:{k}" for k in OPTIONS]
    if kind not in OPTIONS:
        return [f"task.data: {spec.name!r} is unknown{nearest(spec.name, known)}; known: {', '.join(known)}"]
    out = []
    for name, value in spec.options.items():
        if name not in OPTIONS[kind]:
            has = ", ".join(OPTIONS[kind])
            out.append(f"task.data.{name}: unknown option of {spec.name}{nearest(name, OPTIONS[kind])}; known: {has}")
            continue
        default, least, most = OPTIONS[kind][name]
        number = int if isinstance(default, int) else (int, float)
        if isinstance(value, bool) or not isinstance(value, number) or not least <= value <= most:
            word = "whole number" if number is int else "number"
            out.append(f"task.data.{name}: {value!r} found, allowed: a {word} from {least:g} to {most:g}")
    return out or _too_large(kind, {n: d for n, (d, _, _) in OPTIONS[kind].items()} | spec.options)


def _too_large(kind: str, o: dict[str, Any]) -> list[str]:
    """Return a sentence where pictures, and masks of 8 bytes a pixel, do not fit into this machine's memory."""
    import psutil

    rows = o.get("examples", 0) + o.get("test", 0)
    asked, free = rows * o.get("size", 0) ** 2 * (12 if kind == "strokes" else 4), psutil.virtual_memory().available
    if asked <= free:
        return []
    return [
        f"task.data: scenes:{kind} of {rows:,} pictures of {o['size']}x{o['size']} takes {asked / 1e9:,.0f} GB, "
        f"{free / 1e9:,.0f} GB of memory are free here"
    ]


def load(spec: Named, seed: int) -> Dataset:
    """Return the set drawn from `seed`."""
    kind = spec.name.partition(":")[2]
    o = {n: default for n, (default, _, _) in OPTIONS[kind].items()} | spec.options
    real = digits.load(spec, seed)
    if kind == "anomalies":
        return _anomalies(real, int(o["normal"]))
    rng = keys.numpy(keys.key(seed, 0, -1, f"scenes/{kind}"))
    return (_strokes if kind == "strokes" else _objects)(real, o, rng)


def _anomalies(real: Dataset, normal: int) -> Dataset:
    """Return the digits of which 0 to `normal` - 1 are trained on; the test rows are of all ten."""
    rows = np.flatnonzero(real.train.y < normal)
    return Dataset("scenes:anomalies", real.train.take(rows), real.test, 10, real.label_names, "image")


def enlarged(crop: np.ndarray, side: int) -> np.ndarray:
    """Return a crop (h, w) as (side, side), by linear interpolation, in [0, 1]."""
    from scipy.ndimage import zoom

    made = zoom(crop, (side / crop.shape[0], side / crop.shape[1]), order=1, grid_mode=True, mode="nearest")
    return np.asarray(np.clip(made, 0, 1))


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a smooth background (size, size) of mean 0, a sum of nine cosines."""
    basis = np.cos(np.pi * np.arange(3)[:, None] * np.linspace(0, 1, size))
    made = np.einsum("ij,ih,jw->hw", rng.normal(size=(3, 3)), basis, basis)
    return np.asarray(0.1 * (made - made.mean()))


def _strokes(real: Dataset, o: dict[str, Any], rng: np.random.Generator) -> Dataset:
    """Return pictures of one digit of 16 pixels each and masks of three nested regions: `stroke`, the ink; `core`, all within one pixel of
    it; `whole`, within three. They are as bright as 0.75, 0.5 and 0.3 on a background around 0.2. Sites are natural clients: site k has
    a share of the pictures in proportion to 0.7^k (at least 4), and with `shift` s a contrast between 1 - 0.4 s and 1, a brightness
    of its own and between 1 and 1 + s times the noise. Test rows: as many for each site."""
    from scipy.ndimage import binary_dilation

    n, test, size, sites = (int(o[k]) for k in ("examples", "test", "size", "sites"))
    share = 0.7 ** np.arange(sites)
    many = np.maximum(4, np.rint(share / share.sum() * n)).astype(int)
    site = np.concatenate([np.repeat(np.arange(sites), many), np.arange(test) % sites])
    held = np.arange(len(site)) >= many.sum()
    contrast, bright, noisy = (rng.uniform(size=sites) * o["shift"] for _ in range(3))
    x, masks = np.zeros((len(site), 1, size, size), np.float32), np.zeros((len(site), size, size), np.int64)
    y = np.zeros(len(site), np.int64)
    for i, k in enumerate(site):
        part = real.test if held[i] else real.train
        row = int(rng.integers(len(part.y)))
        top, left = rng.integers(0, size - 16 + 1, 2)
        ink = np.zeros((size, size), bool)
        ink[top : top + 16, left : left + 16] = enlarged(part.x[row, 0], 16) > 0.5
        regions = [binary_dilation(ink, iterations=3), binary_dilation(ink), ink]
        masks[i], y[i] = sum(r.astype(np.int64) for r in regions), part.y[row]
        light = np.array([0.2, 0.3, 0.5, 0.75])[masks[i]] + _background(size, rng)
        light = 0.5 + (light - 0.5) * (1 - 0.4 * contrast[k]) + 0.2 * (bright[k] - o["shift"] / 2)
        x[i, 0] = np.clip(light + o["noise"] * (1 + noisy[k]) * rng.normal(size=(size, size)), 0, 1)
    client = np.array([f"site {k:02d}" for k in range(sites)])[site]
    split = np.where(held, "test", "train")
    whole = Part(x, y, client, client, split, {"masks": masks})
    return Dataset("scenes:strokes", whole.take(~held), whole.take(held), 10, real.label_names, "image")


def _objects(real: Dataset, o: dict[str, Any], rng: np.random.Generator) -> Dataset:
    """Return scenes of 1 to `objects` digits below `classes`, of 8 to 13 pixels, that do not touch, with boxes around their ink, (M, 5):
    class, left, top, right, bottom, class -1 where there is none. y is the first object's class.

    With a chance of `partners` every further object is the partner of the first, class (c + classes / 2) mod classes, and stands beside it.
    Weather are domains and natural clients, with `shift` s: dark has 1 - 0.6 s of the light, blurred a Gaussian filter of 1.2 s pixels,
    noisy four times the noise at s = 1; clear is as it is. Test rows: as many of each.
    """
    n, test, size, most, classes = (int(o[k]) for k in ("examples", "test", "size", "objects", "classes"))
    held = np.arange(n + test) >= n
    weather = np.concatenate([rng.permutation(np.arange(many) % len(WEATHER)) for many in (n, test)])
    x, boxes = np.zeros((n + test, 1, size, size), np.float32), np.full((n + test, most, 5), -1.0, np.float32)
    of = [[np.flatnonzero(p.y == c) for c in range(classes)] for p in (real.train, real.test)]
    for i in range(n + test):
        part, rows = (real.test, of[1]) if held[i] else (real.train, of[0])
        light, first = np.zeros((size, size)), int(rng.integers(classes))
        for m in range(int(rng.integers(1, most + 1))):
            friend = m > 0 and rng.random() < o["partners"]
            kind = (first + classes // 2) % classes if friend else first if m == 0 else int(rng.integers(classes))
            crop = enlarged(part.x[rng.choice(rows[kind]), 0], int(rng.integers(8, 14)))
            place = _place(boxes[i, :m], crop.shape[0], size, boxes[i, 0] if friend else None, rng)
            if place is not None:
                light, boxes[i, m] = _put(light, crop, place, kind)
        boxes[i] = boxes[i][np.argsort(boxes[i, :, 0] < 0, kind="stable")]
        x[i, 0] = _seen(0.15 + _background(size, rng) + 0.75 * light, WEATHER[weather[i]], o, rng)
    name = np.array(WEATHER)[weather]
    whole = Part(x, boxes[:, 0, 0].astype(np.int64), name, name, np.where(held, "test", "train"), {"boxes": boxes})
    return Dataset("scenes:objects", whole.take(~held), whole.take(held), classes, real.label_names[:classes], "image")


def _place(
    boxes: np.ndarray, side: int, size: int, beside: np.ndarray | None, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Return (top, left) of a place that touches no box, near one where that is asked for; None where none was found."""
    for _ in range(TRIES):
        top, left = (int(v) for v in rng.integers(0, size - side + 1, 2))
        if beside is not None:
            centre = (beside[1:3] + beside[3:5])[::-1] / 2 + rng.uniform(-1.3, 1.3, 2) * side
            top, left = (int(v) for v in np.clip(np.rint(centre - side / 2), 0, size - side))
        there = boxes[boxes[:, 0] >= 0]
        apart = (
            (there[:, 1] >= left + side) | (there[:, 3] <= left) | (there[:, 2] >= top + side) | (there[:, 4] <= top)
        )
        if apart.all():
            return top, left
    return None


def _put(light: np.ndarray, crop: np.ndarray, place: tuple[int, int], kind: int) -> tuple[np.ndarray, list[float]]:
    """Return a scene with one more object, and its box around what is brighter than 1/4."""
    top, left = place
    side = len(crop)
    light = light.copy()
    light[top : top + side, left : left + side] = np.maximum(light[top : top + side, left : left + side], crop)
    rows, columns = (np.flatnonzero((crop > 0.25).any(a)) for a in (1, 0))
    return light, [kind, left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]


def _seen(light: np.ndarray, weather: str, o: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Return a scene as it is seen in some weather."""
    from scipy.ndimage import gaussian_filter

    s, noise = float(o["shift"]), float(o["noise"])
    if weather == "dark":
        light = light * (1 - 0.6 * s)
    if weather == "blurred":
        light = gaussian_filter(light, 1.2 * s)
    noise = noise * (1 + 3 * s * (weather == "noisy"))
    return np.asarray(np.clip(light + noise * rng.normal(size=light.shape), 0, 1))
