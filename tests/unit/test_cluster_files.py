"""The cluster files are what Ray's launcher accepts, and keep the promises made in their comments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
AWS = ROOT / "cluster.yaml"
LOCAL = ROOT / "rayfed" / "config" / "ready" / "clusters" / "local.yaml"
KUBERAY = ROOT / "rayfed" / "config" / "ready" / "clusters" / "kuberay.yaml"


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
