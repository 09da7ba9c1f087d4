"""What README says is measured is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_speeds_has_the_measured_figures() -> None:
    """Worked out here from peers.json, not by the code that writes it: periods by all defaults; in a sitting from before there were any,
    the times between rounds' begins."""
    found = json.loads((ROOT / "benchmarks" / "peers.json").read_text())["workloads"]
    _, _, rest = (ROOT / "README.md").read_text().partition("<!-- speeds: written by benchmarks/peers/run.py -->")
    head, _, *rows = [line for line in rest.partition("<!-- end of speeds -->")[0].splitlines() if line.startswith("|")]
    columns = {
        "Flower": ["flower"], "pfl-research": ["pfl"], "BlazeFL": ["blazefl", "blazefl_threads"],
        "a plain PyTorch loop, one process": ["loop"], "a round by hand in JAX": ["jax"],
    }  # fmt: skip
    shown = [c.strip() for c in head.strip("|").split("|")][1:]
    assert len(rows) == 4 and {"Flower", "a plain PyTorch loop, one process"} <= set(shown) <= set(columns)
    for (name, how), row in zip(
        (("w1", "rayfed_user"), ("w1", "rayfed_actors"), ("w2", "rayfed_user"), ("w3", "rayfed_user")),
        rows,
        strict=True,
    ):
        sides, figure = found[name], "period_s" if "rayfed_user" in found[name] else "round_s"
        ours = sides[how if how in sides else "rayfed"][figure]["median"]
        for label, cell in zip(shown, row.strip("|").split("|")[1:], strict=True):
            theirs = [sides[e][figure]["median"] for e in columns[label] if e in sides]
            assert cell.strip() == (f"{min(theirs) / ours:.1f} x" if theirs else "–"), (row, label)


def test_the_line_on_a_killed_actor_has_the_measured_figures() -> None:
    """In README, and as a table in docs/reliability.md."""
    runs = json.loads((ROOT / "benchmarks" / "kill.json").read_text())["runs"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    quiet, *killed = (r for r in runs if r["engine"] == "flower")
    at = {int(r["kill"].split(",")[0]) for r in killed}
    missing = [20 - n for r in killed for n in r["answered"][max(at) :]]
    ends = " and ".join(f"{r['accuracy'][-1]:.2f}" for r in killed)
    for said in (
        f"killed in round {max(at)} of {len(quiet['answered'])} rounds with {quiet['answered'][0]} clients",
        f"{min(missing)} to {max(missing)} of 20 clients are missing in every later round, exit {killed[0]['exit']}",
        f"accuracy {ends} in place of {quiet['accuracy'][-1]:.2f}",
    ):
        assert said in readme, said
    assert all(
        r["same"] and r["exit"] == 0 and r["restarts"] == 1 for r in runs if r["engine"] == "rayfed" and r["kill"]
    )
    rows = [line for line in (ROOT / "benchmarks" / "KILL.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(runs) and set(rows) <= set((ROOT / "docs" / "reliability.md").read_text().splitlines())
