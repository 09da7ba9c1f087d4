"""HTML of report pages: numbers as text, tables, figures, sections and the document around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

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


# Without a script: it turns the system's choice of light or dark around.
SWITCH = '<label class="switch soft"><input type="checkbox" id="switch"> light / dark</label>'


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


def spread(sd: float | None, metric: str = "") -> str:
    """Format a standard deviation to follow its mean; nothing if there is none."""
    return "" if sd is None else f' <span class="sd">± {number(sd, metric)}</span>'


# -- elements ----------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str = "", kind: str = "") -> str:
    """Return a table. Cells and caption are HTML already."""
    top = "".join(f'<th scope="col">{c}</th>' for c in head)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in line) + "</tr>" for line in body)
    whole = f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<div class="wide">{whole}</div>' + (f'<p class="caption">{caption}</p>' if caption else "")


def section(title: str, pictures: Sequence[Picture | None], after: str = "") -> str:
    """Return a section with figures, or nothing if it would be empty."""
    shown = figures(pictures)
    return f"<h2>{title}</h2>{shown}{after}" if shown or after else ""


def figures(pictures: Sequence[Picture | None]) -> str:
    """Return the figures of pictures."""
    return "".join(_figure(p) for p in pictures if p)


def _figure(picture: Picture) -> str:
    key = "".join(f"<li>{swatch(style)}{escape(label)}</li>" for label, style in picture.key.items())
    drawings = "".join(f"<div>{svg}</div>" for svg in picture.svgs())
    kind = "whole" if picture.wide else f"of{picture.columns}"
    return (
        f"<figure><figcaption>{escape(picture.title)}</figcaption>"
        + (f'<ul class="key">{key}</ul>' if key else "")
        + f'<div class="panels {kind}">{drawings}</div>'
        + (f'<p class="caption">{escape(picture.note)}</p>' if picture.note else "")
        + "</figure>"
    )


def swatch(style: Style) -> str:
    """Return the sample of a line or a block that stands before its label."""
    if style.get("block"):
        return f'<i class="block" style="background:{style["color"]};opacity:{style.get("alpha", 1):.2f}"></i>'
    dash = ("solid", "dashed", "dotted")[DASHES.index(style.get("linestyle", "-"))]
    colour = "currentColor" if style["color"] == INK else style["color"]
    return f'<i class="line" style="border-top-style:{dash};border-top-color:{colour}"></i>'


def headline(name: str, kind: str, facts: Mapping[str, str]) -> str:
    """Return the head of a page: its name, kind and time, and facts as a list."""
    when = timestamp()[:16].replace("T", " ")
    items = "".join(f'<li><span class="soft">{escape(k)}</span> <b>{escape(v)}</b></li>' for k, v in facts.items())
    title = f'<h1>{escape(name)}</h1><p class="soft">{kind} · report of {when} UTC</p>'
    return f'{title}<ul class="facts">{items}</ul>'


def path_text(path: Path) -> str:
    """Return a path as one would type it in the current folder."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return str(path)
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def document(title: str, sections: Sequence[str]) -> str:
    """Return a self-contained page, light and dark, of sections that are not empty."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n{SWITCH}\n"
        + "\n".join(s for s in sections if s)
        + "\n</main></body></html>\n"
    )
