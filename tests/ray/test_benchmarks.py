"""The benchmarks run, on tiny sizes, and what they compare agrees. How fast anything is, is not asked here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests import minilm

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_rayfed_and_the_plain_loop_end_with_the_same_weights(env: dict[str, str], tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS / "peers" / "run.py"),
        "--tiny",
        "--repetitions",
        "1",
        "--out",
        str(tmp_path),
    ]
    sizes = ["--engines", "rayfed_user,rayfed,loop", "--workloads", "n_mlp,w1,w2"]
    done = subprocess.run([*command, *sizes], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "peers.json").read_text())["workloads"]
    assert set(found) == {"n_mlp", "w1", "w2"}
    about = json.loads((tmp_path / "peers.json").read_text())["about"]
    assert set(about) == set(found) and all("run.py" in t["command"] for t in about.values())
    for engines in found.values():
        for ours in (engines["rayfed_user"], engines["rayfed"]):
            assert ours["apart"] < 1e-4 and 0 < ours["body_s"]["median"] <= ours["period_s"]["median"]
    assert "| rayfed, a user's config |" in (tmp_path / "PEERS.md").read_text()


@pytest.mark.slow
def test_what_is_written_for_other_engines_ends_with_the_loops_weights(env: dict[str, str], tmp_path: Path) -> None:
    """Those whose environments have been made here, and that run without a Ray of their own."""
    envs = Path.home() / ".cache" / "rayfed-peers"
    there = [e for e in ("jax", "blazefl", "fedjax", "fluke", "pfl") if (envs / e / "ready").is_file()]
    if not there:
        pytest.skip("no environment of another engine: python benchmarks/peers/run.py makes them")
    command = [
        sys.executable,
        str(BENCHMARKS / "peers" / "run.py"),
        "--tiny",
        "--repetitions",
        "1",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, "--engines", ",".join(["loop", *there]), "--workloads", "w1"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "peers.json").read_text())["workloads"]["w1"]
    assert set(found) == {"loop", *there}
    assert all(f["apart"] < 1e-4 and f["rounds"] == 3 for f in found.values())


@pytest.mark.slow
def test_a_visit_is_measured_with_and_without_what_makes_it_fast(env: dict[str, str]) -> None:
    command = [sys.executable, str(BENCHMARKS / "peers" / "visit.py"), "w1", "--tiny", "--cohort", "2", "--repeat", "1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:5] for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [[c.strip() for c in row[:3]] for row in rows] == [
        [kind, kept, played]
        for kind in ("plain", "loop", "vmap")
        for kept in ("no", "yes")
        for played in (("no",) if kind == "plain" else ("no", "yes"))
    ]
    assert all(float(row[3].split()[0]) > 0 for row in rows)


@pytest.mark.slow
def test_a_killed_actor_changes_nothing_in_rayfed_and_is_shown_beside_flower(
    env: dict[str, str], tmp_path: Path
) -> None:
    """rayfed's side always; Flower's where its environment has been made."""
    flower = (Path.home() / ".cache" / "rayfed-peers" / "flower" / "ready").is_file()
    command = [sys.executable, str(BENCHMARKS / "peers" / "kill.py"), "--tiny", "--repeat", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--engines", "rayfed,flower" if flower else "rayfed"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads((tmp_path / "kill.json").read_text())["runs"]
    quiet, killed = (r for r in runs if r["engine"] == "rayfed")
    assert quiet["answered"] == killed["answered"] == [20] * 4 and quiet["accuracy"] == killed["accuracy"]
    assert (quiet["restarts"], killed["restarts"], killed["exit"], killed["same"]) == (0, 1, 0, True)
    page = (tmp_path / "KILL.md").read_text()
    assert "| rayfed | client 3's actor | 0 | 20 of 20 | 20 of 20 |" in page and "yes, to the bit" in page
    if flower:
        quiet, _ = (r for r in runs if r["engine"] == "flower")
        assert quiet["answered"] == [20] * 4 and quiet["exit"] == 0


@pytest.mark.slow
@minilm.needed
def test_cohorts_agree_with_peft(env: dict[str, str], tmp_path: Path) -> None:
    sizes = ["--clients", "2", "--steps", "1", "--batch", "2", "--length", "8", "--repeat", "1"]
    command = [sys.executable, str(BENCHMARKS / "cohorts.py"), *sizes, "--out", str(tmp_path / "found.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [r["row"] for r in rows] == ["peft", "loop", "vmap, k = 1", "vmap, k = 2"]
    assert all(r["apart"] < 1e-5 and r["clients_per_s"] > 0 for r in rows)


@pytest.mark.slow
def test_evaluations_are_measured_against_another_checkout(env: dict[str, str], tmp_path: Path) -> None:
    where = ["--against", str(BENCHMARKS.parent), "--out", str(tmp_path)]
    command = [sys.executable, str(BENCHMARKS / "evaluation.py"), "--tiny", "--cases", "no_rows,own_bn", *where]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = json.loads((tmp_path / "evaluation.json").read_text())["cases"]
    assert list(cases) == ["no_rows", "own_bn"]
    for case in cases.values():
        assert case["now"]["scores"] == case["before"]["scores"] and case["now"]["evaluation_cpu_s"] > 0
    assert "accuracy/global" in cases["no_rows"]["now"]["scores"]
    assert "| no_rows |" in (tmp_path / "EVALUATION.md").read_text()


@pytest.mark.slow
def test_scale_is_measured_and_the_stateful_run_goes_on_after_its_end(env: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "scale.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--curves", "clients,population,state,soak"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "scale.json").read_text())["curves"]
    assert list(found) == ["clients", "population", "state", "soak"]
    for name in ("clients", "population"):
        points = found[name]["points"]
        assert len(points) == 2 and points[0]["x"] < points[1]["x"] and math.isfinite(found[name]["slope"])
        for p in points:
            assert all(math.isfinite(v) and v > 0 for v in p.values()) and p["rounds"] == 4
            assert p["first_round_s"] < p["total_s"]
            assert p["least_s"] <= p["round_s"] <= p["most_s"] and p["round_s"] + p["outside_rounds_s"] < p["total_s"]
    state = found["state"]
    small, large = state["touched"]
    per_client = 4 * state["parameters"]  # float32
    for p in (small, large):
        assert (
            per_client * p["x"] < p["state_bytes"] < 1.2 * per_client * p["x"] + 2000
            and p["period_s"] > 0 < p["round_s"]
        )
    assert state["rounds"] == list(range(1, 203)) and state["stateful_clients"] == state["clients"] == 6000
    first, second = state["resumed_at"]  # the kill may fall between a round's row and its snapshot
    assert 100 <= state["killed_after_round"] < 200 and state["killed_after_round"] - first in (0, 1) and second == 200
    soak = found["soak"]
    assert soak["rounds"] == 150 and soak["restarts"] == 0
    assert {"pss", "rss/server", "rss/clients", "store", "files/server"} <= soak["growth"].keys()
    assert all(math.isfinite(g["share"]) and g["level"] > 0 for g in soak["growth"].values())
    page = (tmp_path / "SCALE.md").read_text()
    assert "No round is missing or doubled" in page and (tmp_path / "soak.png").stat().st_size > 10_000
