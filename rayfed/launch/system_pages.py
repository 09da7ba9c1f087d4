"""A page per system, made from the section `system` of its ready config and from the verdicts on its claims.

`rayfed systems NAME` prints one; `python -m rayfed.launch.system_pages` writes all of them into `docs/systems/` of the checkout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfed.config import reading, system
from rayfed.config.load import READY, ready
from rayfed.errors import ConfigError, nearest
from rayfed.launch import reproduce
from rayfed.launch.claims import shipped_verdicts
from rayfed.launch.claims_page import evidence

FOLDER = Path(__file__).parents[2] / "docs" / "systems"
NUMBER = re.compile(r"\b(\d{4}\.\d{5})\b")  # of a paper at arXiv
MISSING = READY.parent / "missing.yaml"  # published work that does not run by its name
MINUTES = Path(__file__).parent / "minutes.json"  # name -> what `python benchmarks/minutes.py` measured
TITLES = {  # of the sections of a page, in their order
    "requires": "Needs", "formula": "Formula", "here": "Here", "ours": "Ours", "missing": "Missing", "unclaimed": "Not claimed",
}  # fmt: skip


def names() -> list[str]:
    """Return the names of the systems: the ready configs that have a section `system`."""
    return [n for n in ready() if "\nsystem:\n" in (READY / f"{n}.yaml").read_text(encoding="utf-8")]


def describe(name: str) -> dict[str, Any]:
    """Return what is known of a system, as `rayfed systems NAME --json` prints it. ConfigError for an unknown name."""
    raw = _raw(name) if name in ready() else {}
    if "system" not in raw:
        known = names()
        raise ConfigError(f"systems: {name!r} is unknown{nearest(name, known)}; known: {', '.join(known)}")
    about = {"name": name, **system.read(raw["system"]).model_dump(), "methods": _methods(raw)}
    verdicts = shipped_verdicts()
    found = {c: verdicts[c] for c in about["claims"] if c in verdicts and not verdicts[c].get("withdrawn")}
    mine = (None, *about["methods"])  # a claim file may be about others, too
    about["results"] = [{"study": c, **r} for c, e in found.items() for r in e["results"] if r["method"] in mine]
    about["waiting"] = [c for c in about["claims"] if c not in verdicts]
    about["verdict"] = _verdict(about["results"]) if about["claims"] else "no claim"
    about["data"] = ", ".join(_data(raw))
    about["minutes"] = _minutes(name)
    about["paper_scale"] = name in reproduce.names()
    return about


def missing() -> dict[str, dict[str, Any]]:
    """Return the published work that does not run by its name: name -> paper, family, what it requires, what is missing."""
    have = names()
    return {n: about for n, about in (reading.read_file(MISSING) or {}).items() if n not in have}


def rows() -> list[dict[str, str]]:
    """Return a row of texts for each system and each missing one: name, family, source, needs, data, verdict, minutes; none is empty."""
    found = []
    for a in map(describe, names()):
        found.append({
            "name": a["name"], "family": ", ".join(a["family"]), "source": a["paper"], "needs": a["requires"], "data": a["data"],
            "verdict": a["verdict"], "minutes": a["minutes"],
        })  # fmt: skip
    for n, a in missing().items():
        found.append({
            "name": n, "family": ", ".join(a["family"]), "source": a["paper"], "needs": a["requires"], "data": "none",
            "verdict": f"does not run; missing: {a['missing']}", "minutes": "none",
        })  # fmt: skip
    return found


def page(name: str, *, markdown: bool = False) -> str:
    """Return a system's page as text for a terminal, or in Markdown. ConfigError for an unknown name."""
    about = describe(name)
    paper, methods = about["paper"], ", ".join(about["methods"])
    if markdown:
        paper = _linked(paper)
        methods = ", ".join(f"[{n}](../methods/{n}.md)" for n in about["methods"])
    lines = [f"# {name}" if markdown else name, "", f"{about['about']}", "", f"Paper: {paper}", ""]
    lines += [
        f"Family: {', '.join(about['family'])}. Methods: {methods}. Data: {about['data']}. Minutes: {about['minutes']}.",
        "",
    ]
    lines += [f"    rayfed run {name}", *([f"    rayfed reproduce {name} --plan"] if about["paper_scale"] else [])]
    for key, title in TITLES.items():
        if about[key]:
            lines += ["", f"## {title}\n" if markdown else title, *_text(about[key], markdown)]
    lines += ["", "## Claims\n" if markdown else "Claims"]
    study = "[{0}](../../benchmarks/CLAIMS.md#{0})" if markdown else "{0}"
    bullet = "- " if markdown else "  "
    for r in about["results"]:
        lines.append(f"{bullet}{r['verdict']} ({study.format(r['study'])}): {r['about']}; {evidence(r)}")
    lines += [f"{bullet}not judged yet: {study.format(c)}" for c in about["waiting"]]
    if not about["claims"]:
        lines.append(f"{bullet}none yet")
    return "\n".join(lines) + "\n"


def listing() -> str:
    """Return all systems as text for a terminal: name, verdicts, family, paper, data, minutes, needs; then what does not run."""
    lines = []
    for r in rows():
        lines += [
            f"{r['name']:26} {r['verdict']} ({r['family']})",
            f"    {r['source']}",
            f"    data: {r['data']}; minutes: {r['minutes']}; needs: {r['needs']}",
        ]
    return "\n".join(lines) + "\n"


def index() -> str:
    """Return the table of all systems in Markdown."""
    lines = [
        "# Systems",
        "",
        "Generated by `make docs` from the ready configs; do not edit.",
        "A system is published work that runs by its name, `rayfed run NAME`, on data that the package brings or makes; yours by",
        "`--set task.data=...`. `rayfed systems NAME` prints its page: the paper, the formula, what stands in for what, what is ours, and",
        "what is not claimed. Where a paper is not federated, one client is the paper's algorithm, and what several add is ours.",
        f"At their papers' scale, on your data and GPUs: `rayfed reproduce NAME --plan` of {', '.join(reproduce.names())}.",
        "Minutes are of one core, all arms of the ready config, by `python benchmarks/minutes.py`. Work that does not run by its name",
        "says what is missing.",
        "",
        "| system | family | source | needs | data | verdicts | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    there = names()
    for r in rows():
        name = f"[{r['name']}]({r['name']}.md)" if r["name"] in there else r["name"]
        cells = [name, r["family"], _linked(r["source"]), *(r[k] for k in ("needs", "data", "verdict", "minutes"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Return file name -> content of all of `docs/systems/`."""
    return {"README.md": index(), **{f"{n}.md": page(n, markdown=True) for n in names()}}


def write(folder: Path = FOLDER) -> None:
    """Write all pages, and delete those of systems that no longer exist."""
    made = pages()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


def _raw(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = reading.read_file(READY / f"{name}.yaml")
    return found


def _data(raw: Mapping[str, Any]) -> list[str]:
    """Return the data of a config and of its arms, each once."""

    def name(task: Any) -> str | None:
        given = (task or {}).get("data") if isinstance(task, Mapping) else None
        return given if given is None or isinstance(given, str) else given.get("name")

    found = [name(raw.get("task")), *(name((arm or {}).get("task")) for arm in (raw.get("arms") or {}).values())]
    return list(dict.fromkeys(n for n in found if n))


def _minutes(name: str) -> str:
    """Return how long a system's ready config took, as text."""
    known = json.loads(MINUTES.read_text(encoding="utf-8")) if MINUTES.is_file() else {}
    return f"{known[name]['minutes']:.1f}" if name in known else "not measured"


def _linked(text: str) -> str:
    """Return a text whose arXiv numbers are links."""
    return NUMBER.sub(r"[\1](https://arxiv.org/abs/\1)", text)


def _methods(raw: Mapping[str, Any]) -> list[str]:
    """Return the methods of a config and of its arms, each once."""

    def name(spec: Any) -> str:
        return spec if isinstance(spec, str) else spec.get("name") or name(raw["method"])

    arms = (raw.get("arms") or {"run": None}).values()
    return list(dict.fromkeys(name((arm or {}).get("method", raw["method"])) for arm in arms))


def _verdict(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the verdicts on a system's claims, counted; "not judged yet" where there is none."""
    words = [str(r["verdict"]).partition(" within")[0] for r in results]
    return ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words)) or "not judged yet"


def _text(text: str, markdown: bool) -> list[str]:
    """Return a section's lines: as they are written, set in a block, or indented."""
    lines = text.strip().splitlines()
    return lines if markdown else [f"  {line}" for line in lines]


if __name__ == "__main__":
    write()
