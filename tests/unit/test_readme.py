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
