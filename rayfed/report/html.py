"""HTML of report pages, by the templates beside it: numbers as text, tables, figures, sections and the document around them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfed.report.picture import DASHES, INK, Picture, Style
from rayfed.report.style import CSS
from rayfed.storage.text_files import timestamp

COUNTS = (
    "round",
    "clusters/count",
    "clients/visits",
    "clients/dropped",
    "actors/restarts",
)  # metrics that are integers


# -- numbers as text ---------------------------------------------------------------------------------------------------


def number(value: float | None, metric: str = "", sign: bool = False) -> str:
    """Format a number with about four significant digits; counts as integers, None as a dash."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    plus = "+" if sign else ""
    if float(value).is_integer() and metric in COUNTS:
        text = f"{int(value):{plus},}"
    elif value and (abs(value) >= 1e6 or abs(value) < 1e-4):
        text = f"{value:{plus}.3e}"
    else:
        text = f"{value:{plus}.4f}" if abs(value) < 10 else f"{value:{plus},.1f}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def size(n: float | None) -> str:
    """Format bytes: 1234567 -> 1.2 MB."""
    if n is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def duration(s: float | None) -> str:
    """Format seconds: 150 -> 2.5 min."""
    if s is None:
        return "–"
    if s < 120:
        return f"{s:.2g} s" if s < 1 else f"{s:.1f} s"
    return f"{s / 60:.1f} min" if s < 7200 else f"{s / 3600:.1f} h"


# -- elements ----------------------------------------------------------------------------------------------------------


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )


def template(name: str) -> Any:
    """Return one of the package's page templates, which escape what they are given; what the parts gave is markup already."""
    return _environment().get_template(name)


def part(name: str, *given: Any, **more: Any) -> str:
    """Return the markup that a macro of `parts.html` makes of texts and other parts."""
    made: str = getattr(_parts(), name)(*given, **more)
    return made


@functools.cache
def _parts() -> Any:
    return template("parts.html").module


def joined(parts: Iterable[str], by: str = "") -> str:
    """Return texts and markup one after the other, as markup."""
    from markupsafe import Markup

    return Markup(by).join(parts)


def spread(sd: float | None, metric: str = "") -> str:
    """Format a standard deviation to follow its mean; nothing if there is none."""
    return "" if sd is None else joined([" ", part("small", f"± {number(sd, metric)}")])


def table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str = "", kind: str = "") -> str:
    """Return a table; cells, heads and caption are text or markup."""
    return part("table", head, body, caption, kind)


def section(title: str, pictures: Sequence[Picture | None], after: str = "") -> str:
    """Return a section with figures, or nothing if it would be empty."""
    shown = joined([figures(pictures), after])
    return part("section", title, shown) if shown else ""


def figures(pictures: Sequence[Picture | None]) -> str:
    """Return the figures of pictures."""
    return joined(_figure(p) for p in pictures if p)


def _figure(picture: Picture) -> str:
    from markupsafe import Markup

    kind = "whole" if picture.wide else f"of{picture.columns}"
    key = {label: _line(style) for label, style in picture.key.items()}
    svgs = [Markup(svg) for svg in picture.svgs()]
    return part("figure", {"title": picture.title, "key": key, "kind": kind, "svgs": svgs, "note": picture.note})


def swatch(style: Style) -> str:
    """Return the sample of a line or a block that stands before its label."""
    return part("swatch", _line(style))


def _line(style: Style) -> dict[str, Any]:
    dash = ("solid", "dashed", "dotted")[DASHES.index(style.get("linestyle", "-"))]
    colour = "currentColor" if style["color"] == INK and not style.get("block") else style["color"]
    return {"block": bool(style.get("block")), "color": colour, "dash": dash, "alpha": f"{style.get('alpha', 1):.2f}"}


def headline(name: str, kind: str, facts: Mapping[str, str]) -> str:
    """Return the head of a page: its name, kind and time, and facts as a list."""
    return part("headline", name, kind, timestamp()[:16].replace("T", " "), facts)


def path_text(path: Path) -> str:
    """Return a path as one would type it in the current folder."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return str(path)
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def document(title: str, sections: Sequence[str]) -> str:
    """Return a self-contained page, light and dark, of sections that are not empty."""
    made: str = template("page.html").render(title=title, css=CSS, sections=sections)
    return made
