"""Systems: ready configs with a section `system`; what their pages say, and the committed pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rayfed import methods
from rayfed.config.load import READY
from rayfed.launch import claims, system_pages
from tests.configs import refusal
from tests.conftest import ROOT

NAMES = system_pages.names()


def test_what_stands_is_registered() -> None:
    assert set(NAMES) >= {
        "disue", "fed-merge", "fed-task-vector", "fedoa", "fedpurel", "cellm", "fedpeft", "fedit-shepherd", "fedlora-survey",
        "embedding-heterogeneity", "clustered-baselines", "core-baselines", "ccvr", "federatedscope-llm", "fed-llm-survey", "lifl",
    }  # fmt: skip
    assert "quickstart" not in NAMES  # a ready config of no paper


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_every_text_and_names_what_exists(name: str) -> None:
    about, said = system_pages.describe(name), system_pages.page(name)
    assert said.splitlines()[0] == name == about["name"] and f"    rayfed run {name}\n" in said
    for key, title in system_pages.TITLES.items():
        assert (f"\n{title}\n" in said) == bool(about[key]), key
        assert all(f"  {line}" in said for line in (about[key] or "").strip().splitlines())
    assert re.search(r"\b\d{4}\.\d{5}\b", about["paper"])
    assert about["methods"] and set(about["methods"]) <= set(methods.names())
    files = {p.stem for p in (ROOT / "benchmarks" / "claims").glob("*.yaml")}
    assert set(about["claims"]) <= files


@pytest.mark.parametrize("name", NAMES)
def test_verdicts_are_those_of_its_claims_about_its_methods(name: str) -> None:
    about, shipped = system_pages.describe(name), claims.shipped_verdicts()
    shown = [(r["study"], r["about"]) for r in about["results"]]
    wanted = [
        (c, r["about"]) for c in about["claims"] for r in shipped.get(c, {"results": ()})["results"]
        if not shipped[c].get("withdrawn") and r["method"] in (None, *about["methods"])
    ]  # fmt: skip
    assert shown == wanted
    said = system_pages.page(name)
    assert all(f"{r['verdict']} ({r['study']}): {r['about']}; " in said for r in about["results"])
    words = [w.split(" ", 1) for w in about["verdict"].split(", ")] if shown else []
    assert sum(int(n) for n, _ in words) == len(shown)
    assert all((f"not judged yet: {c}\n" in said) == (c not in shipped) for c in about["claims"])


def test_a_page_in_markdown_links_paper_methods_and_claims() -> None:
    said = system_pages.page("fed-merge", markdown=True)
    assert "[2504.06768](https://arxiv.org/abs/2504.06768)" in said and "[fedmerge](../methods/fedmerge.md)" in said
    assert "\n## Not claimed\n" in said and "rayfed systems" not in said


def test_no_row_has_an_empty_field_and_what_does_not_run_says_what_is_missing() -> None:
    rows = system_pages.rows()
    assert [r["name"] for r in rows] == [*NAMES, *system_pages.missing()]
    assert not [(r["name"], key) for r in rows for key, text in r.items() if not text.strip()]
    assert all(r["verdict"].startswith("does not run; missing: ") for r in rows[len(NAMES) :])
    said = system_pages.listing()
    assert all(
        r["source"] in said and r["verdict"] in said and f"data: {r['data']}; minutes: {r['minutes']}" in said
        for r in rows
    )
    assert sum(line.startswith("| ") for line in system_pages.index().splitlines()) == 1 + len(rows)  # and the head


def test_parts_of_mosaic_are_named_where_they_are() -> None:
    about = system_pages.describe("datafree-mosaic")
    assert about["methods"] == ["fedavg", "disue"] and "rayfed/distill/client_generators.py" in about["here"]
    assert (ROOT / "rayfed/distill/client_generators.py").is_file()


def test_an_unknown_name() -> None:
    said = refusal(system_pages.describe, "fed-merg")
    assert said.startswith("systems: 'fed-merg' is unknown (did you mean 'fed-merge'?); known: ")
    assert refusal(system_pages.describe, "quickstart").startswith("systems: 'quickstart' is unknown")


def test_the_committed_pages_are_those_of_the_configs() -> None:
    found = {p.name: p.read_text() for p in system_pages.FOLDER.iterdir()}
    made = system_pages.pages()
    differing = sorted(n for n in found.keys() | made.keys() if found.get(n) != made.get(n))
    assert not differing, (
        f"docs/systems/ is not what the ready configs say now; run `make docs`: {', '.join(differing)}"
    )
    assert set(made) == {"README.md", *(f"{n}.md" for n in NAMES)}


def test_writing_deletes_pages_of_systems_that_no_longer_exist(tmp_path: Path) -> None:
    (tmp_path / "gone.md").write_text("")
    system_pages.write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(system_pages.pages())


def test_the_start_of_fedpurel_is_the_claims() -> None:
    ours, theirs = (p / "model.safetensors" for p in (READY / "digits_start", ROOT / "benchmarks/claims/starts/digits"))
    assert ours.read_bytes() == theirs.read_bytes()
