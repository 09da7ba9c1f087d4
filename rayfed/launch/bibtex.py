"""The papers that a method's docstring cites, as BibTeX entries: `rayfed methods NAME --bibtex`."""

from __future__ import annotations

import inspect
import re
import unicodedata

from rayfed import methods
from rayfed.errors import ConfigError
from rayfed.launch.method_pages import papers_of

SMALL = {"a", "an", "the", "on", "of", "for", "in", "to", "towards", "and", "with"}  # words that make no key
LATEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_"}


def bibtex(name: str) -> str:
    """Return an entry for each paper that a method's docstring cites, with what it says of it: authors as it has them, year,
    title, arXiv number. ConfigError for an unknown method, and for one that cites none."""
    doc = inspect.cleandoc(methods.get(name).__doc__ or "")
    if not (papers := papers_of(doc)):
        raise ConfigError(f"methods: {name} cites no paper with an arXiv number, so there is no BibTeX of it")
    return "\n".join(_entry(by, title, number, name) for by, title, number in papers)


def _entry(by: str, title: str, number: str, method: str) -> str:
    """Return one entry. by: `Roe et al. 2020, `, `Roe and Doe 2020, ` or nothing; the year is then that of the arXiv number."""
    found = re.match(r"(.+) (\d{4})", by)
    said, year = (found[1], found[2]) if found else ("", f"20{number[:2]}")
    authors = re.split(r", and | and |, ", said.removesuffix(" et al.")) if said else []
    first = authors[0] if authors else ""
    word = next((w for w in re.findall(r"\w+", title.lower()) if w not in SMALL), method)
    author = " and ".join([*authors, *(["others"] if said.endswith(" et al.") else [])])
    fields = {
        "title": "{" + "".join(LATEX.get(c, c) for c in title) + "}",
        "author": author,
        "year": year,
        "eprint": number,
        "archiveprefix": "arXiv",
        "url": f"https://arxiv.org/abs/{number}",
    }
    lines = [f"  {key:13} = {{{value}}}," for key, value in fields.items() if value]
    plain = (
        unicodedata.normalize("NFKD", (first or method).lower()).encode("ascii", "ignore").decode()
    )  # BibTeX's keys are ASCII
    return "\n".join([f"@misc{{{plain}{year}{word},", *lines, "}"]) + "\n"
