"""Pictures, as SVG panels for the page, whose text and axes take the page's colours, and as PNG for use elsewhere."""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

# Readable on white and on black; the first five also for readers who confuse red and green.
COLOURS = ("#2f7fd0", "#e08a1e", "#1fa187", "#c9528f", "#8b6fd6", "#a0763b", "#d1493f", "#7a8794")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
INK = "#010203"  # in the SVG replaced by the page's text colour
PAPER = "#fefdfc"  # likewise by the colour behind a picture
_SCOPES = ("global", "personal", "cluster", "local", "unseen", "backdoor", "robust", "retained")
SCOPE_COLOURS = dict(zip(_SCOPES, COLOURS))
DPI = 150  # of the PNGs
FORMATS = (".pdf", ".svg", ".png")
_AXIS_COLOURS = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rayfed",
    "pdf.fonttype": 42,  # TrueType, as publishers ask for
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    **dict.fromkeys(_AXIS_COLOURS, INK),
}
_LOCK = threading.Lock()  # matplotlib's settings are global; reports may be written by threads

Style = dict[str, Any]  # color, linestyle; block: a filled square in the key, with alpha


@dataclass(frozen=True)
class Picture:
    """A figure of the page. `key` is its legend, which the page and the PNG each draw in their own way."""

    name: str  # file name under plots/
    title: str
    panels: Sequence[Callable[[Any], None]]  # each paints one axis
    key: Mapping[str, Style]
    note: str = ""
    wide: bool = False  # one panel over the whole width
    narrow: bool = False  # one panel, to stand next to others

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of a panel, inches."""
        if self.narrow:
            return 3.5, 2.7
        if self.wide:
            return 9.6, 3.4
        return (4.9, 3.2) if self.columns < 3 else (3.9, 2.9)

    @property
    def columns(self) -> int:
        """Number of panels in a row."""
        n = len(self.panels)
        if self.wide:
            return 1
        return 2 if n in (2, 4) else min(3, n)

    @cached_property
    def _figures(self) -> list[Any]:
        """A figure per panel with everything in its place: the layout takes most of the time."""
        out = []
        with _drawing():
            for paint in self.panels:
                figure = _figure(*self.size)
                axis = figure.add_subplot()
                _paint(axis, paint)
                figure.get_layout_engine().execute(figure)
                figure.set_layout_engine("none")
                out.append(figure)
        return out

    def svgs(self) -> list[str]:
        """Return a drawing per panel, so that the page can arrange them."""
        out = []
        for i, figure in enumerate(self._figures):
            sink = io.BytesIO()
            with _drawing():
                figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            out.append(_inline(sink.getvalue().decode(), f"{self.name}-{i}", self.title))
        return out

    def figure(self) -> Figure:
        """Draw all panels and the key into one matplotlib figure, to be changed or saved."""
        rows, columns = math.ceil(len(self.panels) / self.columns), self.columns
        with _drawing():
            width, height = self.size
            figure = _figure(columns * width, rows * height + (0.35 if self.key else 0.0))
            axes = figure.subplots(rows, columns, squeeze=False).ravel()
            for axis, paint in zip(axes, self.panels):
                _paint(axis, paint)
            for axis in axes[len(self.panels) :]:
                axis.remove()
            if self.key:
                handles, in_row = [_handle(style) for style in self.key.values()], _in_row(self, columns)
                figure.legend(handles, list(self.key), loc="outside lower center", ncols=in_row)
        return figure

    def save(self, file: Path | str) -> Path:
        """Write all panels and the key into a .pdf, .svg or .png file, replacing it, and return the file.

        ConfigError for another ending, and where the file cannot be written.
        """
        return write_figure(self.figure(), Path(file))

    def _repr_png_(self) -> bytes:
        """Show the picture in a notebook."""
        return self.png()

    def png(self) -> bytes:
        """Return all panels and the key on white."""
        import numpy as np
        from matplotlib.image import imsave

        columns, figures = self.columns, self._figures
        with _drawing():
            panels = [_pixels(figure) for figure in figures]
            panels += [np.full_like(panels[0], 255)] * (-len(panels) % columns)
            rows = [np.concatenate(panels[i : i + columns], 1) for i in range(0, len(panels), columns)]
            if self.key:
                in_row = _in_row(self, columns)
                width = rows[0].shape[1] / DPI + 0.01  # whole pixels, at least
                figure = _figure(width, 0.2 + 0.22 * math.ceil(len(self.key) / in_row))
                handles = [_handle(style) for style in self.key.values()]
                figure.legend(handles, list(self.key), loc="center", ncols=in_row)
                rows.append(_pixels(figure))
            sink = io.BytesIO()
            imsave(sink, np.concatenate([row[:, : rows[0].shape[1]] for row in rows]), format="png", dpi=DPI)
        return sink.getvalue()


def _paint(axis: Any, paint: Callable[[Any], None]) -> None:
    """Paint a panel onto an axis with a grid."""
    axis.grid(True, axis="y", color="#808080", alpha=0.25, linewidth=0.7)
    axis.set_axisbelow(True)
    paint(axis)


def _in_row(picture: Picture, columns: int) -> int:
    """Return the number of labels in a row of the key."""
    return min(len(picture.key), max(2, int(columns * picture.size[0] / 1.6)))


def check_file(file: Path, option: str) -> None:
    """Check that a picture can be written to a file, before anything is computed. ConfigError if not; option: what named it."""
    if file.suffix.lower() not in FORMATS:
        raise ConfigError(f"{option}: {str(file)!r} found, allowed: a file that ends in {', '.join(FORMATS)}")
    if not file.parent.is_dir():
        raise ConfigError(f"{option}: {file} cannot be written, {file.parent} is not a folder")


def write_figure(figure: Figure, file: Path, option: str = "file", dpi: int = DPI) -> Path:
    """Write a matplotlib figure on white, in the format of the file's ending; errors as in `check_file`."""
    from rayfed.storage.atomic import durable_write, os_error_text

    check_file(file, option)
    sink, kind = io.BytesIO(), file.suffix.lower()[1:]
    with _drawing():
        about = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]  # the same bytes every time
        figure.savefig(sink, format=kind, dpi=dpi, facecolor="white", metadata=about)
    try:
        durable_write(file, sink.getvalue(), sync=False)
    except OSError as error:
        raise ConfigError(f"{option}: cannot write {file}: {os_error_text(error, file.parent)}") from error
    return file


@contextmanager
def _drawing() -> Iterator[None]:
    """Hold matplotlib's settings for one thread."""
    import matplotlib

    with _LOCK, matplotlib.rc_context(SETTINGS):
        yield


def _figure(width: float, height: float) -> Any:
    """Return an empty figure; width and height in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.07))


def _pixels(figure: Any) -> np.ndarray:
    """Draw a figure: (height, width, 3) of 0..255."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _inline(svg: str, name: str, title: str) -> str:
    """Prepare an SVG for the inside of an HTML page: no XML header, unique ids, the page's colours, a name for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor").replace(PAPER, "var(--panel)")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def _handle(style: Style) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if style.get("block"):
        return Patch(facecolor=style["color"], alpha=style.get("alpha"))
    return Line2D([], [], color=style["color"], linestyle=style.get("linestyle", "-"))


def line_style(i: int) -> Style:
    """Return colour and dashes of line or arm `i`."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[(i // len(COLOURS)) % len(DASHES)]}


def line_width(i: int, n: int) -> float:
    """Return the width of line `i` of `n`: earlier lines are wider, so that they stay visible below later ones."""
    return 1.6 + min(0.7, 1.8 / max(1, n - 1)) * (n - 1 - i)


def shorten(text: str, length: int = 18) -> str:
    """Cut a text to what fits next to an axis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def file_name(name: str) -> str:
    """Replace what does not belong in a file name."""
    return re.sub(r"[^\w.-]+", "-", name)
