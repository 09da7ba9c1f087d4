"""Clusters of several nodes: where folds are merged, what travels, and what the death of a node costs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.ray.conftest import at_round, numbers, only_run, placed, until

pytestmark = pytest.mark.slow  # their own clusters: minutes on two cores

BIG = {"data": {"name": "synthetic:blobs", "examples": 1200, "classes": 4, "features": 8, "test": 100}}
BIG["model"] = {"name": "mlp", "hidden": [64, 64]}


def bytes_up(folder):
    from rayfed.api import Run

    return [r["ray/bytes/up"] for r in Run(folder).metrics().to_pylist()]


def test_one_sum_per_node_travels(rayfed, config, nodes, tmp_path):
    """Eight times the calls on the same nodes: what travels to the server grows by their logarithm, the numbers do not change."""
    cluster = nodes(1, 1, 1)
    up = {}
    for per_round in (16, 128):
        file = config(
            f"{per_round}.yaml", task=BIG, rounds=1, method={"name": "fedavg"},
            federation={"clients": 128, "per_round": per_round}, resources={"actors": 3, "cohort": 1, "executor": "loop"},
        )  # fmt: skip
        there = tmp_path / f"nodes-{per_round}"
        code, out = rayfed("run", file, "--out", there, "--address", cluster.address).wait()
        assert code == 0, out
        assert len({c["node"] for c in placed(only_run(there))["clients"]}) == 3
        up[per_round] = bytes_up(only_run(there))[0]
    code, out = rayfed("run", file, "--out", tmp_path / "local", "--local").wait()
    assert code == 0, out
    assert numbers(only_run(there)) == numbers(only_run(tmp_path / "local")), "the same bits"
    model = 4 * (8 * 64 + 64 + 64 * 64 + 64 + 64 * 4 + 4)
    assert bytes_up(only_run(tmp_path / "local"))[0] >= 128 * model, "a sum per call where all is one process"
    assert up[128] <= 3 * 2 * 7 * model + 10_000, "at most nodes x 2 log2(calls) sums, and what evaluation sends"
    assert up[128] < 4 * up[16], "eight times the calls"


def test_a_node_dies_in_mid_run(rayfed, config, nodes, tmp_path):
    """Its calls and its sums are made again elsewhere: the run ends, or resumes, with the numbers of the plain process."""
    cluster = nodes(1, 1, 1)
    file = config(
        task=BIG, rounds=60, method={"name": "fedavg"}, evaluate={"every": 20},
        resources={"actors": 2, "cohort": 1, "executor": "loop"}, storage={"snapshot_every": 5},
    )  # fmt: skip
    run = rayfed("run", file, "--out", tmp_path / "o", "--address", cluster.address)
    folder = at_round(tmp_path / "o", 3)
    cluster.end_node(0)
    code, out = run.wait()
    if code == 4:  # both of its nodes are needed for the next call
        code, out = rayfed("resume", folder, "--address", cluster.address).wait()
    assert code == 0, out
    code, plain = rayfed("run", file, "--out", tmp_path / "local", "--local").wait()
    assert code == 0, plain
    assert numbers(folder) == numbers(only_run(tmp_path / "local"))


def test_a_run_goes_on_without_the_node_that_is_gone(rayfed, config, nodes, tmp_path):
    """No place is left for its actor: the other one does all the work, also of the study's next run; no number changes."""
    cluster = nodes(1, 1)
    large = {**BIG, "model": {"name": "mlp", "hidden": [192, 192]}}  # sums stay where they were made, and die there
    file = config(
        task=large, rounds=40, method={"name": "fedavg"}, evaluate={"every": 20}, seeds=[0, 1],
        resources={"actors": 2, "cohort": 1, "executor": "loop"}, storage={"snapshot_every": 5},
    )  # fmt: skip
    run = rayfed("run", file, "--out", tmp_path / "o", "--address", cluster.address)
    until(lambda: json.loads(next((tmp_path / "o").rglob("state.json")).read_text())["round"] >= 3, "round 3")
    cluster.end_node(0)
    code, out = run.wait()
    assert code == 0, out
    code, plain = rayfed("run", file, "--out", tmp_path / "local", "--local").wait()
    assert code == 0, plain
    found, local = ({p.parent.name: p.parent for p in (tmp_path / o).rglob("state.json")} for o in ("o", "local"))
    assert sorted(found) == sorted(local) and len(found) == 2
    for seed, folder in found.items():
        assert numbers(folder) == numbers(local[seed])
    first, second = (placed(found[seed])["clients"] for seed in sorted(found))
    assert (len({c["node"] for c in first}), len(second)) == (2, 1)


def test_a_cluster_grows_to_what_is_asked(rayfed, config, env, tmp_path):
    """Ray's fake cloud: what the nodes there cannot carry is refused at once, or with --scale-up asked for and waited for."""
    made = {
        "cluster_name": "fake", "provider": {"type": "fake_multinode"}, "max_workers": 2, "head_node_type": "ray.head.default",
        "upscaling_speed": 9999.0, "idle_timeout_minutes": 5, "auth": {}, "docker": {}, "file_mounts": {},
        "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
        "initialization_commands": [], "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [],
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "more": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
    }  # fmt: skip
    file = tmp_path / "cloud.yaml"
    file.write_text(yaml.safe_dump(made))
    port = 6379  # the one that Ray's fake cloud joins
    with socket.socket() as s:
        if s.connect_ex(("127.0.0.1", port)) == 0:
            pytest.skip(f"port {port} is in use, and Ray's fake cloud knows no other")
    where = env["RAY_TMPDIR"] + "/ray"
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=1", "--include-dashboard=false"]
    head = subprocess.Popen(
        [str(Path(sys.executable).parent / command[0]), *command[1:], f"--temp-dir={where}", f"--autoscaling-config={file}"],
        env={**env, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: socket.create_connection(("127.0.0.1", port), 1), "the head answers", 120)
        time.sleep(5)
        from ray.util import get_node_ip_address

        address = f"{get_node_ip_address()}:{port}"
        two = config(rounds=2, resources={"actors": 2, "executor": "loop"})
        code, out = rayfed("run", two, "--out", tmp_path / "a", "--address", address).wait()
        assert code == 3 and "2 actors asked, 1 fit" in out, out
        run = ("run", config("four.yaml", resources={"actors": 9}), "--out", tmp_path / "b", "--address", address)
        code, out = rayfed(*run, "--scale-up", 3).wait()
        assert code == 3 and "3 s (--scale-up) were not enough" in out, out
        code, out = rayfed("run", two, "--out", tmp_path / "c", "--address", address, "--scale-up", 180).wait()
        assert code == 0, out
        assert len({c["node"] for c in placed(only_run(tmp_path / "c"))["clients"]}) == 2
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        finally:
            for p in psutil.process_iter(["cmdline"]):  # nodes that the fake cloud started
                if any(env["RAY_TMPDIR"] in word for word in p.info["cmdline"] or ()):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        p.kill()
