"""Who holds what, drawn from splits that were made but not run: for `rayfed partition`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed.errors import ConfigError
from rayfed.report.plots import _STYLE, COLOURS, INK

if TYPE_CHECKING:
    from rayfed.partition.describe import Description, View

MOST_COLUMNS = 2000  # clients drawn
MOST_NAMES = 20  # of classes, domains or clusters
MOST_BLOCKS = 12  # planted groups with a name


def check(file: Path) -> None:
    """ConfigError if pictures cannot be written there, before anything is computed."""
    if file.suffix.lower() != ".png":
        raise ConfigError(f"--out: {str(file)!r} found, allowed: a file that ends in .png")
    if not file.parent.is_dir():
        raise ConfigError(f"--out: {file} cannot be written, {file.parent} is not a folder")


def write(described: Sequence[Description], file: Path) -> None:
    """Draw splits into a PNG file, replacing it. ConfigError if it cannot be written."""
    from rayfed.storage.atomic import durable_write, why

    try:
        durable_write(file, png(described), sync=False)
    except OSError as e:
        raise ConfigError(f"--out: cannot write {file}: {why(e, file.parent)}") from e


def png(described: Sequence[Description], dpi: int = 110) -> bytes:
    """Per split, the clients' sizes as bars and a map for each of its views: clients x classes (domains, clusters), the deeper
    the more training examples. A column is the same client in all drawings of a split."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    edges = _edges(max(int(v.counts.max()) for d in described for v in d.views))
    inches = [h for d in described for h in (1.1, *(_height(v) for v in d.views))]
    with matplotlib.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(h_pad=0.05, w_pad=0.07)
        figure = Figure(figsize=(9.6, sum(inches) + 0.4), layout=layout)
        axes = iter(figure.subplots(len(inches), 1, squeeze=False, height_ratios=inches)[:, 0])
        for d in described:
            columns = _columns(d)
            _bars(next(axes), columns, _short(f"{d.title()}, seed {d.config.seed}", 105))
            for i, view in enumerate(d.views):
                _map(next(axes), view, columns, edges, "clients" if i == len(d.views) - 1 else "")
        _key(figure, edges)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi, facecolor="white")
    return drawn.getvalue()


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
    blocks = [(int(block[a]), a, b) for a, b in pairwise(cuts)]
    return _Columns(order, sizes[order], [(words.get(g, f"group {g}"), a, b) for g, a, b in blocks])


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}…"


def _height(view: View) -> float:
    """Inches of its map."""
    return min(2.6, 0.6 + 0.16 * view.counts.shape[1])


def _edges(most: int) -> list[int]:
    """Least counts of the shades, and one past the largest."""
    return sorted({round(e) for e in np.geomspace(1, max(2, most + 1), 6)})


def _shades(edges: Sequence[int]) -> np.ndarray:
    """How opaque, (shades + 1,); the first is none."""
    return np.concatenate([[0.0], np.linspace(0.18, 1.0, len(edges) - 1)])


def _bare(axis: Any, columns: _Columns) -> None:
    axis.set_xticks([])
    axis.set_xlim(-0.5, len(columns.order) - 0.5)
    for _, a, _ in columns.blocks[1:]:
        axis.axvline(a - 0.5, color=INK, linewidth=1.2)


def _bars(axis: Any, columns: _Columns, title: str) -> None:
    named = 1 < len(columns.blocks) <= MOST_BLOCKS
    axis.set_title(title, loc="left", pad=20 if named else 6)
    axis.bar(
        np.arange(len(columns.sizes)), columns.sizes, width=0.9 if len(columns.sizes) <= 300 else 1.0, color=COLOURS[7]
    )
    axis.set_ylabel("examples")
    _bare(axis, columns)
    for words, a, b in columns.blocks if named else ():
        axis.annotate(
            words, ((a + b - 1) / 2, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
            ha="center", annotation_clip=False,
        )  # fmt: skip


def _map(axis: Any, view: View, columns: _Columns, edges: Sequence[int], under: str) -> None:
    from matplotlib.colors import to_rgb

    shades, counts = _shades(edges), view.counts[columns.order]
    colours = np.empty((counts.shape[1], len(counts), 4))
    colours[..., :3] = to_rgb(COLOURS[0])
    colours[..., 3] = shades[np.minimum(np.digitize(counts, edges), len(edges) - 1)].T
    axis.imshow(colours, aspect="auto", interpolation="none", origin="upper")
    axis.set_ylabel(view.by)
    axis.set_xlabel(under)
    if len(view.names) == counts.shape[1] <= MOST_NAMES:
        axis.set_yticks(range(counts.shape[1]), [_short(n, 18) for n in view.names])
        axis.tick_params(axis="y", length=0)
    _bare(axis, columns)


def _key(figure: Any, edges: Sequence[int]) -> None:
    from matplotlib.patches import Patch

    words = [f"{a:,}" if b == a + 1 else f"{a:,}–{b - 1:,}" for a, b in pairwise(edges)]
    handles = [Patch(facecolor=COLOURS[0], alpha=float(s)) for s in _shades(edges)[1:]]
    figure.legend(
        handles, words, loc="outside lower center", ncols=len(words), title="training examples", title_fontsize=10
    )
