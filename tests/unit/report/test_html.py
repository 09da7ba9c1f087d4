"""Numbers as text, and elements that escape what comes from files."""

from __future__ import annotations

import math

from rayfed.report.html import document, duration, headline, number, part, section, size, spread, swatch, table
from rayfed.report.picture import INK, line_style


def test_numbers_have_four_significant_digits():
    assert [number(x) for x in (0.123456, 12.345, 1234.5, 2e6, 5e-5, 0.0, -1.5)] == [
        "0.1235", "12.3", "1,234.5", "2.000e+06", "5.000e-05", "0.0000", "−1.5000",
    ]  # fmt: skip
    assert number(3.0, "clusters/count") == "3" and number(3.0, "accuracy/global") == "3.0000"
    assert number(0.5, sign=True) == "+0.5000" and number(None) == "–" and number(math.nan) == "nan"
    assert spread(None) == "" and "± 0.5000" in spread(0.5)


def test_bytes_and_seconds_have_units():
    assert [size(n) for n in (None, 0, 999, 1e3, 2.5e6, 1e9, 1e12)] == [
        "–",
        "0 B",
        "999 B",
        "1.0 kB",
        "2.5 MB",
        "1.0 GB",
        "1.0 TB",
    ]
    assert [duration(s) for s in (None, 0.123, 90, 150, 9000)] == ["–", "0.12 s", "90.0 s", "2.5 min", "2.5 h"]


def test_text_is_escaped_and_cells_are_html():
    assert "<b>x</b>" in table(["a"], [[part("bold", "x")]]) and "<p" not in table(["a"], [])
    assert "&lt;b&gt;x" in table(["a"], [["<b>x</b>"]]) and "&lt;i&gt;" in table(["<i>"], [], "<i>")
    page = document("<name>", ["", headline("<n>", "Run", {"a<b": "c&d"})])
    assert "<title>&lt;name&gt;</title>" in page and "a&lt;b" in page and "c&amp;d" in page and "<n>" not in page


def test_an_empty_section_is_left_out():
    assert section("Title", [None]) == "" and section("Title", [], part("paragraph", "x")) == "<h2>Title</h2><p>x</p>"


def test_swatches_are_samples_of_lines():
    assert "dashed" in swatch(line_style(8)) and "currentColor" in swatch({"color": INK})
    assert "opacity:0.50" in swatch({"color": "#123456", "block": True, "alpha": 0.5})
