"""Figures of claims in documents are those of claims.json."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rayfed.launch import claim_quotes, claims
from tests.conftest import ROOT

RESULT = {
    "better": "a", "than": "b", "metric": "accuracy/global", "at": 3, "mean_difference": 0.05, "ci95": [0.01, 0.09],
    "ci95_rows": [-0.03, 0.13], "verdict": "undecided",
}  # fmt: skip
DOCUMENTS = claim_quotes.documents(ROOT)


def quote(what: str, shown: str = "") -> str:
    return f"It is <!-- claim {what} -->{shown}<!-- /claim --> here."


def test_a_figure_is_that_of_the_verdict() -> None:
    verdicts = {"small": {"results": [RESULT]}}
    what = "small a b accuracy/global @3"
    now = claim_quotes.with_figures(quote(what, "+0.9"), verdicts)
    assert now == quote(what, "+0.0500 [-0.0300, +0.1300], undecided") == claim_quotes.with_figures(now, verdicts)
    for other in ("small a b accuracy/global @4", "other a b accuracy/global @3"):
        assert claim_quotes.with_figures(quote(other, "+0.9"), verdicts) == quote(other, "not judged")
    gone = {"small": {"results": [RESULT], "withdrawn": "it was unstable"}}
    assert claim_quotes.with_figures(quote(what), gone) == quote(what, "not judged")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda f: f.name)
def test_documents_quote_what_is_published(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    now = claim_quotes.with_figures(text, claims.shipped_verdicts())
    assert now == text, "its figures are not those of claims.json: run `make docs`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda f: f.name)
def test_figures_beside_a_claim_are_quotes(document: Path) -> None:
    """A line that names a claim file has no difference of its own that would stay when the claim is judged again."""
    names = "|".join(f.stem for f in (ROOT / "benchmarks" / "claims").glob("*.yaml") if "_" in f.stem)
    text = claim_quotes.QUOTE.sub("", document.read_text(encoding="utf-8"))
    named = [line for line in text.splitlines() if re.search(rf"claims?/?({names})\b|\bclaim ({names})\b", line)]
    assert not [line for line in named if re.search(r"[+-]0\.\d\d", line)]
