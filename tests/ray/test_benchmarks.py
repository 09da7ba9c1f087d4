"""The benchmarks run, on tiny sizes, and what they compare agrees. How fast anything is, is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import minilm

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_rayfed_and_the_plain_loop_end_with_the_same_weights(env: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "peers" / "run.py"), "--tiny", "--repeat", "1", "--out", str(tmp_path)]
    sizes = ["--engines", "rayfed,loop", "--workloads", "n_mlp,w1,w2"]
    done = subprocess.run([*command, *sizes], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "peers.json").read_text())["workloads"]
    assert set(found) == {"n_mlp", "w1", "w2"}
    for engines in found.values():
        assert engines["rayfed"]["apart"] < 1e-4 and engines["rayfed"]["round_s"]["median"] > 0
    assert "| rayfed |" in (tmp_path / "PEERS.md").read_text()


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
