"""Who holds what, drawn from splits that were made but not run: for `rayfed partition`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed.errors import ConfigError
from rayfed.report.plots import COLOURS, INK, Look, Picture

if TYPE_CHECKING:
    from rayfed.partition.describe import Description, View

MOST_COLUMNS = 2000  # clients drawn
MOST_NAMES = 20  # of classes, domains or clusters


def check(file: Path) -> None:
    """ConfigError if pictures cannot be written there, before anything is computed."""
    if file.suffix.lower() != ".png":
        raise ConfigError(f"--out: {str(file)!r} found, allowed: a file that ends in .png")
    if not file.parent.is_dir():
        raise ConfigError(f"--out: {file} cannot be written, {file.parent} is not a folder")


def write(described: Sequence[Description], file: Path) -> None:
    """Draw splits into a PNG file, replacing it. ConfigError if it cannot be written."""
    from rayfed.files import durable_write, why

    try:
        durable_write(file, picture(described).png(), sync=False)
    except OSError as e:
        raise ConfigError(f"--out: cannot write {file}: {why(e, file.parent)}") from e


def picture(described: Sequence[Description]) -> Picture:
    """Per split, a map for each of its views: clients x classes (domains, clusters), the deeper the more training examples.

    Bars above the first map are the clients' sizes; clients stand in the same order in all maps of a split.
    """
    edges = _edges(max(int(v.counts.max()) for d in described for v in d.views))
    panels: list[Callable[[Any], None]] = []
    for d in described:
        columns = _columns(d)
        for i, view in enumerate(d.views):
            title = f"{d.title()}, seed {d.config.seed}" if i == 0 else ""
            panels.append(_panel(view, columns, edges, title))
    return Picture("partition", "Who holds what", panels, _key(edges), "A column is a client.", wide=True)


class _Columns(NamedTuple):
    """Clients in the order drawn (n,), their numbers of examples (n,), and (words, first, behind the last) of each block."""

    order: np.ndarray
    sizes: np.ndarray
    blocks: list[tuple[str, int, int]]


def _columns(d: Description) -> _Columns:
    """By planted group, those held out last; inside by what they hold most of, or by size."""
    f, first, sizes = d.federation, d.views[0].counts, d.federation.train.sizes()
    unseen = int(f.group.max()) + 1
    block = np.where(np.arange(f.clients) >= f.population, unseen, f.group)
    if d.config.federation.partition.kind == "quantity":
        order = np.lexsort((-sizes, block))
    else:
        order = np.lexsort((-first.max(1), np.argmax(first, 1), block))
    if len(order) > MOST_COLUMNS:
        order = order[np.linspace(0, len(order) - 1, MOST_COLUMNS).astype(int)]
    block = block[order]
    cuts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(block)]
    words = {-1: "", unseen: "unseen"}
    return _Columns(
        order, sizes[order], [(words.get(g, f"group {g}"), a, b) for a, b in pairwise(cuts) for g in (int(block[a]),)]
    )


def _edges(most: int) -> list[int]:
    """Least counts of the shades, and one past the largest."""
    return sorted({round(e) for e in np.geomspace(1, max(2, most + 1), 6)})


def _shades(edges: Sequence[int]) -> np.ndarray:
    """How opaque, (shades + 1,); the first is none."""
    return np.concatenate([[0.0], np.linspace(0.18, 1.0, len(edges) - 1)])


def _key(edges: Sequence[int]) -> Mapping[str, Look]:
    key: dict[str, Look] = {}
    for i, (a, b) in enumerate(pairwise(edges)):
        words = str(a) if b == a + 1 else f"{a:,}–{b - 1:,}"
        look = {"color": COLOURS[0], "alpha": float(_shades(edges)[i + 1]), "block": True}
        key[f"{words} examples" if i == 0 else words] = look
    return key


def _panel(view: View, columns: _Columns, edges: Sequence[int], title: str) -> Callable[[Any], None]:
    """Paints one map; with a title, also the sizes."""
    from matplotlib.colors import to_rgb

    shades, counts, blocks = _shades(edges), view.counts[columns.order], columns.blocks
    colours = np.empty((counts.shape[1], len(counts), 4))
    colours[..., :3] = to_rgb(COLOURS[0])
    colours[..., 3] = shades[np.minimum(np.digitize(counts, edges), len(edges) - 1)].T
    named = 1 < len(blocks) <= 12

    def paint(axis: Any) -> None:
        axis.imshow(colours, aspect="auto", interpolation="none", origin="upper")
        axis.grid(False)
        axis.set_xticks([])
        axis.set_ylabel(view.by)
        axis.set_xlabel("clients")
        if counts.shape[1] <= MOST_NAMES and len(view.names) == counts.shape[1]:
            axis.set_yticks(range(counts.shape[1]), [n if len(n) <= 18 else f"{n[:17]}…" for n in view.names])
            axis.tick_params(axis="y", length=0)
        drawn = [axis]
        if title:
            bars = axis.inset_axes((0, 1.04, 1, 0.3), sharex=axis)
            bars.bar(np.arange(len(counts)), columns.sizes, width=0.9 if len(counts) <= 300 else 1.0, color=COLOURS[7])
            bars.set_ylabel("size")
            bars.tick_params(axis="x", bottom=False, labelbottom=False)
            axis.set_title(
                title, loc="left", y=1.34, pad=22 if named else 6
            )  # the layout leaves no room for an inset's own
            drawn.append(bars)
        for each in drawn:
            for _, a, _ in blocks[1:]:
                each.axvline(a - 0.5, color=INK, linewidth=1.2)
        for words, a, b in blocks if named and title else ():
            at = {
                "xycoords": ("data", "axes fraction"),
                "xytext": (0, 4),
                "textcoords": "offset points",
                "ha": "center",
            }
            drawn[-1].annotate(words, ((a + b - 1) / 2, 1.0), annotation_clip=False, **at)

    return paint
