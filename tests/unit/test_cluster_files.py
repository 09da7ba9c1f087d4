"""The cluster files are what Ray's launcher accepts, and keep the promises made in their comments."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
AWS = ROOT / "cluster.yaml"
LOCAL = ROOT / "rayfed" / "config" / "ready" / "clusters" / "local.yaml"
KUBERAY = ROOT / "rayfed" / "config" / "ready" / "clusters" / "kuberay.yaml"
SLURM = ROOT / "rayfed" / "config" / "ready" / "clusters" / "slurm.sbatch"


def valid(made: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(made)
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("file", [AWS, LOCAL], ids=lambda f: f.stem)
def test_rays_launcher_accepts(file: Path) -> None:
    made = yaml.safe_load(file.read_text())
    valid(yaml.safe_load(file.read_text()))
    with pytest.raises(Exception, match="max_wokers"):
        valid({**made, "max_wokers": 3})
    for start in (made["head_start_ray_commands"], made["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in start[-1] and "--metrics-export-port=8080" in start[-1]
    assert "--dashboard-host=127.0.0.1" in made["head_start_ray_commands"][-1]
    assert "~/.ray/auth_token" in made["file_mounts"]


def test_the_cloud_cluster_keeps_room_and_bounds() -> None:
    made = valid(yaml.safe_load(AWS.read_text()))
    types = made["available_node_types"]
    head = types[made["head_node_type"]]
    assert head["max_workers"] == 0 and head["resources"] == {"CPU": 2}  # fewer than it has, and no GPU
    spot = {n: t["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot" for n, t in types.items()}
    gpus = {n for n, t in types.items() if t["resources"].get("GPU")}
    assert {spot[n] for n in gpus} == {True, False}
    assert all(0 <= types[n]["min_workers"] <= types[n]["max_workers"] <= made["max_workers"] for n in gpus)
    assert any("constraints.txt" in c and "-e" in c for c in made["setup_commands"])
    assert made["file_mounts"]["~/rayfed"] == "."


def test_distillation_goes_to_a_gpu_node_of_the_cloud_cluster() -> None:
    from actors.placement import plan_placement
    from tests import toy

    types = yaml.safe_load(AWS.read_text())["available_node_types"]
    nodes = [t["resources"] for t in types.values()]
    c = toy.config("fedavg", resources={"gpus_per_actor": 0.25, "server": {"gpus": 0.5, "place": "any"}})
    made = plan_placement(c, nodes)
    assert made.server_anywhere and made.gpus > 0 and {"GPU": 0.5} in made.bundles()
    assert made.actors == 6  # two next to the server on the first card, four on the second


def test_the_kubernetes_manifest() -> None:
    made = yaml.safe_load(KUBERAY.read_text())
    (ray,) = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    spec = made["spec"]
    assert (made["apiVersion"], made["kind"], spec["rayVersion"]) == ("ray.io/v1", "RayCluster", ray[5:])
    assert spec["authOptions"] == {"mode": "token"} and spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    pods = [g["template"]["spec"] for g in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    for pod in pods:
        volumes = {v["name"] for v in pod["volumes"]}
        for c in pod["containers"]:
            assert {m["name"] for m in c["volumeMounts"]} <= volumes
            assert all(c["resources"]["limits"][k] >= v for k, v in c["resources"]["requests"].items())
    group = spec["workerGroupSpecs"][0]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


# -- Slurm -------------------------------------------------------------------------------------------------------------

STUBS = {  # what the script calls, on a machine without Slurm and Ray: each call is a line of `calls`
    "scontrol": 'echo "scontrol $*" >> calls; [ "$1" = show ] && printf "n1\\nn2\\n"; true',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; if [ "$1" = hostname ]; then echo "127.0.0.1 ::1"; else echo "$*" >> calls; fi',
    "python": 'if [ "$1" = -c ]; then echo secret; else cat > /dev/null; echo "waited for $2 nodes" >> calls; fi',
    "rayfed": 'echo "rayfed $* as $RAYFED_RUN_ID with $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> calls; exec ./work',
    "work": "exit 4",
}


@pytest.fixture
def slurm(tmp_path: Path) -> Any:
    """Starts the script on stubs; a server that only listens stands for Ray's head."""
    import socket

    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text("")
    for name, text in STUBS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        port = head.getsockname()[1]
        job = 4711
        script = SLURM.read_text().replace("20000 + SLURM_JOB_ID % 20000", str(port))
        assert script.count(str(port)) == 1
        about = {
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NNODES": "2",
            "SLURM_CPUS_PER_TASK": "4",
        }
        env = {**os.environ, **about, "HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}

        def start(*words: str) -> tuple[subprocess.Popen[str], str]:
            command = ["bash", "-c", script, "slurm.sbatch", *words]
            return subprocess.Popen(command, cwd=tmp_path, env=env, text=True), f"slurm-{job}"

        yield start


def test_the_slurm_script_starts_a_ray_and_a_run_and_ends_as_it_does(slurm: Any, tmp_path: Path) -> None:
    process, run = slurm("run", "mine.yaml", "--set", "rounds=3")
    assert process.wait(120) == 4
    calls = (tmp_path / "calls").read_text()
    assert "ray start --num-cpus=4 --disable-usage-stats --block --head --node-ip-address=127.0.0.1" in calls
    assert calls.count("ray start") == 2 and "waited for 2 nodes" not in calls.partition("ray start")[0]
    assert "rayfed run mine.yaml --set rounds=3 --address 127.0.0.1:" in calls
    assert f"as {run} with token secret" in calls and "requeue" not in calls
    (tmp_path / "runs" / run).mkdir(parents=True)
    slurm("run", "mine.yaml")[0].wait(120)
    assert f"rayfed resume runs/{run} --address" in (tmp_path / "calls").read_text()


def test_a_slurm_job_whose_time_is_over_ends_its_round_and_is_queued_again(slurm: Any, tmp_path: Path) -> None:
    work = 'trap "sleep 0.3; touch committed; exit 143" TERM; touch began; while true; do sleep 0.05; done'
    (tmp_path / "work").write_text(f"#!/usr/bin/env bash\n{work}\n")
    process, _ = slurm("run", "mine.yaml")
    end = time.monotonic() + 60
    while not (tmp_path / "began").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143 and (tmp_path / "committed").exists()
    assert "scontrol requeue" in (tmp_path / "calls").read_text()
