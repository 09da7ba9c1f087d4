"""Pictures as SVG for the page and as PNG."""

from __future__ import annotations

import io
import re

import numpy as np
from matplotlib.image import imread

from rayfed.report.picture import COLOURS, INK, Picture, line_style, line_width, shorten


def paint(axis):
    axis.plot([1, 2], [3, 4], color=INK)
    axis.set_title("a & b")


def test_panels_are_arranged():
    sizes = {n: Picture("p", "t", [paint] * n, {}).columns for n in (1, 2, 3, 4, 5)}
    assert sizes == {1: 1, 2: 2, 3: 3, 4: 2, 5: 3}
    assert Picture("p", "t", [paint], {}, wide=True).columns == 1


def test_svgs_take_the_colours_of_the_page_and_unique_ids():
    one, two = Picture("p", "<t>", [paint, paint], {}).svgs()
    assert INK not in one and "currentColor" in one and one.startswith("<svg ") and 'aria-label="&lt;t&gt;"' in one
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0] and not ids[0] & ids[1]


def test_the_png_has_all_panels_and_the_key_on_white():
    picture = Picture("p", "t", [paint] * 3, {"a": {"color": COLOURS[0]}})
    plain = imread(io.BytesIO(Picture("p", "t", [paint], {}).png()))
    pixels = imread(io.BytesIO(picture.png()))
    assert pixels.shape[1] == 3 * 585 and plain.shape[1] == 735 and (pixels[0, 0, :3] == 1).all()
    assert pixels.shape[0] > 435 and np.unique(pixels[436:]).size > 1, "the key below the panels"


def test_lines_differ():
    styles = [tuple(line_style(i).values()) for i in range(24)]
    assert len(set(map(str, styles))) == 24 and str(styles[0]) == str(tuple(line_style(24).values()))
    widths = [line_width(i, 4) for i in range(4)]
    assert widths == sorted(widths, reverse=True) and widths[-1] == 1.6
    assert shorten("x" * 18) == "x" * 18 and shorten("x" * 19) == "x" * 17 + "…"
