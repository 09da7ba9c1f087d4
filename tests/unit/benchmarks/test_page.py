"""PEERS.md and README's table, from made-up figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import page

ROOT = Path(__file__).resolve().parents[3]


def side(body: float, period: float, **more: float) -> dict[str, Any]:
    spread = {k: {"median": v, "min": v, "max": v} for k, v in {"body_s": body, "period_s": period, **more}.items()}
    return {**spread, "apart": 1e-7, "repeats": 2, "rounds": 5, "visits_per_s": 1.0}


def made() -> dict[str, Any]:
    w1 = {
        "rayfed_user": side(0.002, 0.004), "rayfed": side(0.002, 0.003), "loop": side(0.005, 0.006),
        "flower": side(0.2, 0.3), "pfl": side(0.006, 0.0065), "jax": side(0.001, 0.0012),
        "blazefl": side(0.014, 0.016), "blazefl_threads": side(0.018, 0.02),
    }  # fmt: skip
    w3 = {"rayfed_user": side(2.0, 3.0, evaluate_s=1.0), "loop": side(8.0, 9.0)}
    return {"about": {"w1": {"machine": "here"}, "w3": {"machine": "here"}}, "workloads": {"w1": w1, "w3": w3}}


def test_readmes_ratios_are_those_of_periods_with_all_defaults() -> None:
    lines = page.speeds(made()["workloads"])
    assert "with all defaults" in lines[0]
    head, _, small, large = lines[-4:]
    engines = ["Flower", "pfl-research", "BlazeFL", "a plain PyTorch loop, one process", "a round by hand in JAX"]
    assert head == f"| | {' | '.join(engines)} |"
    assert small.endswith("| 75.0 x | 1.6 x | 4.0 x | 1.5 x | 0.3 x |")  # BlazeFL's faster way
    assert large.endswith("| – | – | – | 3.0 x | – |")


def test_a_sitting_without_a_users_config_says_what_its_ratios_are_of() -> None:
    old = {"w1": {"rayfed": {"round_s": {"median": 2.0}}, "loop": {"round_s": {"median": 5.0}}}}
    lines = page.speeds(old)
    assert "without trackers" in lines[0] and lines[-1].endswith("| 2.5 x |")


def test_only_readmes_table_is_replaced() -> None:
    text = f"# one\n\n{page.BEGIN}\nstale\n{page.END}\n\n## two\n"
    once = page.into_readme(text, made()["workloads"])
    assert once == page.into_readme(once, made()["workloads"]) and "stale" not in once
    assert once.startswith("# one\n\n") and once.endswith(f"{page.END}\n\n## two\n")


def test_targets_are_of_the_figures_that_they_name() -> None:
    text = "\n".join(page.targets(made()["workloads"]))
    assert (
        "| W1, body: rayfed, evaluated once, no trackers, against plain loop | ≥ 1.3 x faster | 2.50 x | met |" in text
    )
    assert "| W1, period: rayfed, a user's config, against plain loop | ≥ 1.5 x faster | 1.50 x | met |" in text
    assert "| W1, period: rayfed, a user's config, against its body | ≤ 1.8 x | 2.00 x | **not met** |" in text
    assert "| W1, body: rayfed, a user's config, against JAX, by hand | ≤ 1.3 x | 2.00 x | **not met** |" in text
    assert "| W3, an evaluation: rayfed, a user's config, against its body | ≤ 0.6 x | 0.50 x | met |" in text
    assert "N with" not in text  # not measured


def test_a_table_has_a_row_per_side_and_the_columns_that_were_measured() -> None:
    head, _, *rows = page.table(made()["workloads"]["w1"])
    assert head == "| engine | body, s | period, s | rayfed is | apart | runs |"
    assert (
        rows[0] == "| rayfed, a user's config | 0.002 (0.002 to 0.002) | 0.004 (0.004 to 0.004) | 1.00 x | 1e-07 | 2 |"
    )
    assert rows[5].startswith("| JAX, by hand |") and "| 0.30 x |" in rows[5]


def test_other_hosts_and_what_is_not_here_are_named() -> None:
    found = made()
    found["about"]["w1"]["left out"] = {"fedjax": "pip: no"}
    other = {
        "about": {"w1": {"machine": "there"}},
        "workloads": {"w1": {"rayfed": {"round_s": {"median": 1, "min": 1, "max": 1}}}},
    }
    text = page.write(found, [other])
    assert "Not here: FedJAX (pip: no)." in text and "left out {" not in text
    here, _, there = text.partition("## An earlier sitting: there")
    assert "| JAX, by hand |" in here and "### W1" in there and "from begin to begin, s" in there


def test_the_page_is_that_of_the_measured_figures() -> None:
    folder = ROOT / "benchmarks"
    others = [json.loads(f.read_text()) for f in sorted(folder.glob("peers-*.json"))]
    assert (folder / "PEERS.md").read_text() == page.write(json.loads((folder / "peers.json").read_text()), others)
