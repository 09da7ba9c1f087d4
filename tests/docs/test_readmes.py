"""The READMEs of packages point at what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READMES = sorted((ROOT / "rayfed").rglob("README.md"))


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.parent.name)
def test_tables_name_files_and_what_is_in_them(readme: Path) -> None:
    """A cell may have several answers: a path, then names that stand in its file."""
    rows = [line.strip("|").split("|") for line in readme.read_text().splitlines() if line.startswith("| ")]
    found = 0
    for _, answer, *_ in rows:
        file: Path | None = None
        for word in re.findall(r"`([^`]+)`", answer):
            places = [p for p in (ROOT / word, readme.parent / word) if "/" in word or word.endswith(".py")]
            if places:
                file = next((p for p in places if p.exists()), None)
                assert file is not None, word
                found += 1
            elif file is not None and file.is_file() and word.isidentifier():
                assert re.search(rf"\b{word}\b", file.read_text()), f"{file} has no {word}"
    assert found > 5


def test_the_map_has_every_package() -> None:
    text = (ROOT / "rayfed" / "README.md").read_text()
    for package in sorted(p.parent for p in (ROOT / "rayfed").glob("*/__init__.py")):
        assert f"`rayfed/{package.name}`" in text, package.name
