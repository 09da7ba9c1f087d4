"""Pages of methods say what their files say, and those that are committed are the ones that would be made now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rayfed import methods
from rayfed.launch import claims, method_pages


@pytest.mark.parametrize("name", methods.names())
def test_a_page_has_the_settings_the_wire_the_visits_and_the_logged_names(name: str) -> None:
    cls, about, said = methods.get(name), method_pages.describe(name), method_pages.page(name)
    assert said.splitlines()[0] == name == about["name"]
    assert list(about["settings"]) == list(cls.Settings.model_fields)
    for setting, field in cls.Settings.model_fields.items():
        assert f"\n  {setting} = {field.get_default(call_default_factory=True)!r} (" in said
        assert about["settings"][setting]["about"]
    for side in cls.wire._fields:
        assert set(about["wire"][side]) == set(getattr(cls.wire, side))
        assert all(f"\n  {side} {part} (" in said for part in about["wire"][side])
    assert {n for n in about["visits"] if n not in ("view",)} and all(f"\n  {n}\n" in said for n in about["visits"])
    assert about["logs"].keys() == cls.logs.keys() and all(f"\n  {n} (" in said for n in cls.logs)


def test_only_claims_about_the_method_are_shown() -> None:
    verdicts = [r for entry in claims.shipped_verdicts().values() for r in entry["results"]]
    for name in methods.names():
        shown = method_pages.describe(name)["claims"]
        assert [r["about"] for r in shown] == [r["about"] for r in verdicts if r["method"] == name]
        assert all(f"{r['verdict']} (" in method_pages.page(name) for r in shown)
    baseline = method_pages.page("fedavg")  # others are held against it, adapters are compared with it
    assert not any(r["about"] in baseline for r in verdicts if r["method"] != "fedavg")
    assert "others are held against it in" in baseline


def test_papers_are_found_in_docstrings() -> None:
    doc = 'Roe et al. 2020, "On Things" (ICML 2020,\n2001.00001). See Doe et al. 2021, THING (2002.00002), "On Things" (2001.00001).'
    assert method_pages.papers_of(doc + " RBLA (Poe et al. 2022, 2003.00003).") == [
        ("Roe et al. 2020, ", "On Things", "2001.00001"),
        ("Doe et al. 2021, ", "THING", "2002.00002"),
        ("", "RBLA", "2003.00003"),
    ]


@pytest.mark.parametrize("name", sorted(methods.ready()))
def test_the_index_has_every_paper_that_a_method_cites(name: str) -> None:
    """What is no paper's number in a docstring is caught too: five digits after four are one."""
    doc = methods.get(name).__doc__ or ""
    cited = dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", doc))
    assert [id for _, _, id in method_pages.papers_of(doc)] == list(cited)
    assert cited or name == "local_only"
    assert all(f"(https://arxiv.org/abs/{id})" in method_pages.index() for id in cited)


@pytest.mark.parametrize("name", sorted(methods.ready()))
def test_a_docstring_says_what_travels_and_what_is_stored_where(name: str) -> None:
    doc = (methods.get(name).__doc__ or "").lower()
    assert [w for w in ("down", "up", "kept at client", "at the server") if w not in doc] == []


def test_the_committed_pages_are_those_of_the_files() -> None:
    found = {p.name: p.read_text() for p in method_pages.FOLDER.iterdir()}
    made = method_pages.pages()
    differing = sorted(n for n in found.keys() | made.keys() if found.get(n) != made.get(n))
    assert not differing, (
        f"docs/methods/ is not what the methods' files say now; run `make docs`: {', '.join(differing)}"
    )


def test_writing_deletes_pages_of_methods_that_no_longer_exist(tmp_path: Path) -> None:
    (tmp_path / "gone.md").write_text("")
    method_pages.write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"README.md", *(f"{n}.md" for n in methods.ready())}
    assert (tmp_path / "fedavg.md").read_text() == method_pages.page("fedavg", markdown=True)
