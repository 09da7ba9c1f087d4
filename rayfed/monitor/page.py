"""The live page: one HTML document with its scripts, which load nothing but numbers from /api, as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from rayfed.report import style
from rayfed.report.html import template
from rayfed.report.picture import COLOURS, SCOPE_COLOURS

HERE = Path(__file__).parent


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


CSS = _text("uplot/uPlot.min.css") + style.CSS + _text("page.css")  # uPlot 1.6.32, its licence beside it
SCRIPT = "\n".join(
    [
        _text("uplot/uPlot.iife.min.js"),
        f"const COLOURS={json.dumps(COLOURS)},SCOPES={json.dumps(SCOPE_COLOURS)};",
        _text("page.js"),
    ]
)


def html(folder: str) -> str:
    """Return the page for the runs of a folder."""
    return template("monitor.html").render(folder=folder, css=CSS, script=SCRIPT)
