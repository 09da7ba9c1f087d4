"""What README says is measured is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_speeds_has_the_measured_figures() -> None:
    found = json.loads((ROOT / "benchmarks" / "peers.json").read_text())["workloads"]
    said = [line for line in (ROOT / "README.md").read_text().splitlines() if line.endswith(" x |")]
    rows = (("w1", "rayfed"), ("w1", "rayfed_actors"), ("w2", "rayfed"), ("w3", "rayfed"))
    for (name, how), line in zip(rows, said, strict=True):
        ours = found[name][how]["round_s"]["median"]
        ratios = [found[name][e]["round_s"]["median"] / ours for e in ("flower", "pfl", "loop")]
        assert line.endswith(" | ".join(["", *(f"{r:.1f} x" for r in ratios)]) + " |"), line


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
