"""The docs site: every page is in its navigation, generated pages are up to date, and it builds without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayfed.config.user_code import load_file
from tests.conftest import ROOT


class Loose(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags mkdocs knows."""


Loose.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
SITE: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), Loose)


def pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [p for entry in (nav.values() if isinstance(nav, dict) else nav) for p in pages(entry)]


def test_every_page_is_in_the_navigation() -> None:
    there = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    listed = {p for p in there if p.startswith(("methods/", "systems/"))} | set(pages(SITE["nav"]))
    own = {p for p in listed if not p.startswith("benchmarks/")}
    assert own == there
    assert all((ROOT / p).is_file() for p in listed - own)


@pytest.mark.parametrize("page", ["config.md", "python.md", "commands.md"])
def test_reference_pages_are_as_generated(page: str) -> None:
    made = load_file(str(ROOT / "docs" / "reference" / "make.py")).PAGES[page]()
    assert (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8") == made, "make docs"


def test_links_lead_somewhere() -> None:
    """As the site's hook sees them: into docs/ or to a file of the repository."""
    for file in sorted((ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)\s#]+)", file.read_text(encoding="utf-8")):
            assert "://" in target or (file.parent / target).exists(), f"{file.name}: {target}"


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="pip install 'rayfed-engine[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "site" / "index.html").is_file(), done.stderr
