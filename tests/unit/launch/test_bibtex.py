"""The papers of methods as BibTeX: every method that cites one has an entry that BibTeX can read."""

from __future__ import annotations

import re

import pytest

from rayfed import methods
from rayfed.launch.bibtex import _entry, bibtex
from rayfed.launch.method_pages import papers_of
from tests.configs import refusal

CITES = sorted(n for n in methods.ready() if papers_of(methods.get(n).__doc__ or ""))


def test_an_entry() -> None:
    assert bibtex("fedavg") == (
        "@misc{mcmahan2017communication,\n"
        "  title         = {{Communication-Efficient Learning of Deep Networks from Decentralized Data}},\n"
        "  author        = {McMahan and others},\n"
        "  year          = {2017},\n"
        "  eprint        = {1602.05629},\n"
        "  archiveprefix = {arXiv},\n"
        "  url           = {https://arxiv.org/abs/1602.05629},\n"
        "}\n"
    )


@pytest.mark.parametrize("name", CITES)
def test_every_method_has_entries_that_are_whole(name: str) -> None:
    text = bibtex(name)
    entries = text.split("\n\n")
    assert len(entries) == len(papers_of(methods.get(name).__doc__ or ""))
    keys = re.findall(r"^@misc\{([a-z0-9_-]+),$", text, re.M)
    assert len(keys) == len(set(keys)) == len(entries)
    assert text.count("{") == text.count("}")


def test_a_method_that_cites_none() -> None:
    without = sorted(methods.ready() - set(CITES))
    assert without and "cites no paper" in refusal(bibtex, without[0])
    assert "did you mean 'scaffold'" in refusal(bibtex, "scafold")


@pytest.mark.parametrize(
    ("doc", "author"),
    [
        ('Roe et al. 2020, "On Clients" (2001.00001)', "Roe and others"),
        ('Roe 2020, "On Clients" (2001.00001)', "Roe"),
        ('Roe and Doe 2020, "On Clients" (2001.00001)', "Roe and Doe"),
        ('Roe, Doe and Poe 2020, "On Clients" (2001.00001)', "Roe and Doe and Poe"),
    ],
)
def test_authors_are_those_that_are_named(doc: str, author: str) -> None:
    (paper,) = papers_of(doc)
    entry = _entry(*paper, "roe")
    assert f"author        = {{{author}}}," in entry and entry.startswith("@misc{roe2020clients,")
