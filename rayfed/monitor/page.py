"""The live page: one HTML document with its script, which loads nothing but numbers from /api, as JSON."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from rayfed.report import style
from rayfed.report.html import SWITCH
from rayfed.report.picture import COLOURS, SCOPE_COLOURS

HERE = Path(__file__).parent
CSS = style.CSS + (HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = f"const COLOURS={json.dumps(COLOURS)},SCOPES={json.dumps(SCOPE_COLOURS)};\n" + (HERE / "page.js").read_text(
    encoding="utf-8"
)


def html(folder: str) -> str:
    """Return the page for the runs of a folder."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>rayfed monitor</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f'<style>{CSS}</style></head><body><main><header><h1><a href="#">rayfed monitor</a></h1>'
        f'<span id="fresh" class="soft">loading</span>'
        f'{SWITCH}</header><p class="soft">{escape(folder)}</p>'
        '<p id="back" hidden><a href="#">← all runs</a></p>'
        '<input id="filter" type="search" placeholder="Filter by name, method or state" aria-label="Filter">'
        f'<div id="runs"></div><noscript>This page needs JavaScript.</noscript></main><script>{SCRIPT}</script></body></html>'
    )
