"""docs/reliability.md names tests and commands that there are."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def test_what_the_page_names_is_there() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"\b((?:tests|benchmarks|rayfed)/[\w/.]+\.(?:py|md))(?:::(\w+))?", page))
    assert len(named) > 10
    for file, test in named:
        assert (ROOT / file).is_file(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"
