"""The glossary points at what is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "docs" / "glossary.md").read_text().splitlines()
ROWS = [[c.strip() for c in line.strip("|").split("|")] for line in LINES if line.startswith("| ") and "`" in line]


def test_every_word_is_where_the_glossary_says() -> None:
    assert len(ROWS) > 30 and all(len(row) == 4 for row in ROWS)
    for word, _, meaning, where in ROWS:
        path, *names = re.findall(r"`([^`]+)`", where)
        assert (ROOT / path).exists(), f"{word}: {path}"
        assert meaning
        for name in names:
            assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{word}: {path} has no {name}"
