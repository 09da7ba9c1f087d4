"""Two families of models on a real cluster: a client actor and the server's process are killed, and no number changes."""

from __future__ import annotations

import os
import signal

import pytest

from tests.ray.conftest import at_round, numbers, only_run, placed

TWO = {
    "small": {"name": "mlp", "hidden": [16], "share": 0.5},
    "large": {"name": "mlp", "hidden": [12, 16], "share": 0.5},
}
METHODS = [  # client states of both families, a last layer in common; models of both at the server
    {"name": "lg_fedavg"},
    pytest.param({"name": "disue_families", "iterations": 1, "student_steps": 1, "batch": 8}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["name"])
def test_a_killed_actor_and_a_killed_server_change_no_number(rayfed, config, tmp_path, method):
    written = config(rounds=120, task={"model": TWO}, method=method, evaluate={"every": 40})
    command = rayfed("run", written, "--out", tmp_path / "ray", "--address", "local")
    folder = at_round(tmp_path / "ray", 3)
    os.kill(placed(folder)["clients"][0]["pid"], signal.SIGKILL)
    reached = len(numbers(folder))
    at_round(tmp_path / "ray", reached + 5)
    os.kill(placed(folder)["server"], signal.SIGKILL)
    code, out = command.wait()
    assert code == 4 and f"rayfed resume {folder}" in out, out
    code, out = rayfed("resume", folder, "--address", "local").wait()
    assert code == 0, out
    code, out = rayfed("run", written, "--out", tmp_path / "local", "--local").wait()
    assert code == 0, out
    assert numbers(folder) == numbers(only_run(tmp_path / "local"))
