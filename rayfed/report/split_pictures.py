"""Pictures of data splits (who holds what): one of a report, and the file that `rayfed partition` writes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed.report.client_pictures import blocks, paint_cells
from rayfed.report.data_split import DataSplit, data_split
from rayfed.report.picture import COLOURS, INK, SETTINGS, Picture, Style, check_file, shorten, write_figure
from rayfed.report.subject import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rayfed.partition.describe import Description, View

MAX_COLUMNS = 2000  # clients drawn
MAX_NAMES = 20  # of classes, domains or clusters
MAX_BLOCKS = 12  # planted groups with a name


# -- cells: the more examples, the less transparent ---------------------------------------------------------------------


def _edges(most: int) -> list[int]:
    """Return the least count of each shade, and one past the largest."""
    return sorted({round(e) for e in np.geomspace(1, max(2, most + 1), 6)})


def _opacities(edges: Sequence[int]) -> np.ndarray:
    """Return how opaque each shade is, (shades + 1,); the first is for no example."""
    return np.concatenate([[0.0], np.linspace(0.18, 1.0, len(edges) - 1)])


def _cell_colours(counts: np.ndarray, edges: Sequence[int]) -> np.ndarray:
    """Return colours (K, n, 4) of counts (n, K)."""
    from matplotlib.colors import to_rgb

    colours = np.empty((counts.shape[1], len(counts), 4))
    colours[..., :3] = to_rgb(COLOURS[0])
    colours[..., 3] = _opacities(edges)[np.minimum(np.digitize(counts, edges), len(edges) - 1)].T
    return colours


# -- in a report -------------------------------------------------------------------------------------------------------


def split_picture(run: RunRecord, name: str = "partition", about: str = "") -> Picture | str:
    """Draw a run's training examples by client and class, or return why there is no picture.

    Clients by planted group, unseen ones last; in a group by the class of which they hold most. about: goes into the title.
    """
    split = data_split(run)
    if isinstance(split, str):
        return split
    unseen = int(split.group.max()) + 1  # as a separate group
    group = np.where(split.unseen, unseen, split.group)
    order = np.lexsort((-split.counts.max(1), np.argmax(split.counts, 1), group))
    counts, group = split.counts[order], group[order]
    edges = _edges(int(counts.max()))
    paint = partial(_paint_split, split=split, colours=_cell_colours(counts, edges), group=group, unseen=unseen)
    note = f"A column is a client. {split.text()}"
    title = f"Training examples by client and class{about}"
    return Picture(name, title, [paint], _shade_key(edges), note, wide=True)


def _paint_split(axis: Any, split: DataSplit, colours: np.ndarray, group: np.ndarray, unseen: int) -> None:
    paint_cells(axis, colours)
    names, n = split.label_names, len(colours)
    if n <= MAX_NAMES and len(names) == n:
        axis.set_yticks(range(n), [shorten(x) for x in names])
        axis.tick_params(axis="y", length=0)
    axis.set_ylabel("class")
    axis.set_xlabel("clients")
    found = blocks(group)
    for _, a, _ in found[1:]:
        axis.axvline(a - 0.5, color=INK, linewidth=1.2)
    if 1 < len(found) <= MAX_BLOCKS:
        top = axis.secondary_xaxis("top")
        words = [_group_name(g, unseen) for g, _, _ in found]
        top.set_xticks([(a + b - 1) / 2 for _, a, b in found], words)
        top.tick_params(length=0)
        top.spines["top"].set_visible(False)
    axis.set_xticks([])


def _group_name(group: int, unseen: int) -> str:
    if group == unseen:
        return "unseen"
    return f"group {group}" if group >= 0 else ""


def _shade_key(edges: Sequence[int]) -> dict[str, Style]:
    key: dict[str, Style] = {}
    opacities = _opacities(edges)
    for i, (a, b) in enumerate(pairwise(edges)):
        words = str(a) if b == a + 1 else f"{a}–{b - 1}"
        label = f"{words} example{'s' * (words != '1')}" if i == 0 else words
        key[label] = {"color": COLOURS[0], "alpha": float(opacities[i + 1]), "block": True}
    return key


# -- `rayfed partition` ------------------------------------------------------------------------------------------------


DPI = 110  # of PNGs, which are large


def check(file: Path) -> None:
    """Check that a picture can be written to a file, before anything is computed. ConfigError if not."""
    check_file(file, "--out")


def write(splits: Sequence[Description], file: Path) -> None:
    """Draw splits into a .pdf, .svg or .png file, replacing it. ConfigError if it cannot be written."""
    write_figure(figure(splits), file, "--out", DPI)


def png(splits: Sequence[Description]) -> bytes:
    """Draw splits as `figure` does, as the content of a PNG file."""
    import matplotlib

    sink, drawn = io.BytesIO(), figure(splits)
    with matplotlib.rc_context(SETTINGS):
        drawn.savefig(sink, format="png", dpi=DPI, facecolor="white")
    return sink.getvalue()


def figure(splits: Sequence[Description]) -> Figure:
    """Draw each split: the clients' sizes as bars, and cells for each of its views, clients x classes (domains, clusters).

    A column is the same client in all drawings of a split.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    edges = _edges(max(int(v.counts.max()) for d in splits for v in d.views))
    inches = [h for d in splits for h in (1.1, *(_height(v) for v in d.views))]
    with matplotlib.rc_context(SETTINGS):
        layout = ConstrainedLayoutEngine(h_pad=0.05, w_pad=0.07)
        drawn = Figure(figsize=(9.6, sum(inches) + 0.4), layout=layout)
        axes = iter(drawn.subplots(len(inches), 1, squeeze=False, height_ratios=inches)[:, 0])
        for d in splits:
            columns = _columns(d)
            _paint_sizes(next(axes), columns, shorten(f"{d.title()}, seed {d.config.seed}", 105))
            for i, view in enumerate(d.views):
                _paint_view(next(axes), view, columns, edges, "clients" if i == len(d.views) - 1 else "")
        _paint_key(drawn, edges)
    return drawn


class _Columns(NamedTuple):
    """Clients in the order drawn (n,), their numbers of examples (n,), and (name, first, one past the last) of each group."""

    order: np.ndarray
    sizes: np.ndarray
    blocks: list[tuple[str, int, int]]


def _columns(d: Description) -> _Columns:
    """Order clients by planted group, those held out last; in a group by the class of which they hold most, or by size."""
    f, first, sizes = d.federation, d.views[0].counts, d.federation.train.sizes()
    unseen = int(f.group.max()) + 1
    group = np.where(np.arange(f.clients) >= f.population, unseen, f.group)
    if d.config.federation.partition.kind == "quantity":
        order = np.lexsort((-sizes, group))
    else:
        order = np.lexsort((-first.max(1), np.argmax(first, 1), group))
    if len(order) > MAX_COLUMNS:
        order = order[np.linspace(0, len(order) - 1, MAX_COLUMNS).astype(int)]
    return _Columns(order, sizes[order], [(_group_name(g, unseen), a, b) for g, a, b in blocks(group[order])])


def _height(view: View) -> float:
    """Return the height of a view's cells, inches."""
    return min(2.6, 0.6 + 0.16 * view.counts.shape[1])


def _separate_groups(axis: Any, columns: _Columns) -> None:
    axis.set_xticks([])
    axis.set_xlim(-0.5, len(columns.order) - 0.5)
    for _, a, _ in columns.blocks[1:]:
        axis.axvline(a - 0.5, color=INK, linewidth=1.2)


def _paint_sizes(axis: Any, columns: _Columns, title: str) -> None:
    named = 1 < len(columns.blocks) <= MAX_BLOCKS
    axis.set_title(title, loc="left", pad=20 if named else 6)
    width = 0.9 if len(columns.sizes) <= 300 else 1.0
    axis.bar(np.arange(len(columns.sizes)), columns.sizes, width=width, color=COLOURS[7])
    axis.set_ylabel("examples")
    _separate_groups(axis, columns)
    for name, a, b in columns.blocks if named else ():
        axis.annotate(
            name, ((a + b - 1) / 2, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
            ha="center", annotation_clip=False,
        )  # fmt: skip


def _paint_view(axis: Any, view: View, columns: _Columns, edges: Sequence[int], x_label: str) -> None:
    counts = view.counts[columns.order]
    axis.imshow(_cell_colours(counts, edges), aspect="auto", interpolation="none", origin="upper")
    axis.set_ylabel(view.by)
    axis.set_xlabel(x_label)
    if len(view.names) == counts.shape[1] <= MAX_NAMES:
        axis.set_yticks(range(counts.shape[1]), [shorten(n) for n in view.names])
        axis.tick_params(axis="y", length=0)
    _separate_groups(axis, columns)


def _paint_key(figure: Any, edges: Sequence[int]) -> None:
    from matplotlib.patches import Patch

    words = [f"{a:,}" if b == a + 1 else f"{a:,}–{b - 1:,}" for a, b in pairwise(edges)]
    handles = [Patch(facecolor=COLOURS[0], alpha=float(s)) for s in _opacities(edges)[1:]]
    columns = len(words)
    figure.legend(
        handles, words, loc="outside lower center", ncols=columns, title="training examples", title_fontsize=10
    )
