"""The Ray session of a command: a local Ray that it starts, or a cluster that it joins."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from rayfed.errors import PlacementError


def connect(address: str, metadata: dict[str, str]) -> None:
    """Start a local Ray or join a cluster.

    address: "local", "auto" or a cluster's; metadata: what the dashboard shows of this job. Raises PlacementError where no Ray
    answers.
    """
    import ray
    from ray.job_config import JobConfig

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": "rayfed"}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a submitted job has its own
        common["job_config"] = JobConfig(metadata=metadata)
    if address == "local":
        node = local_node()
        ray.init(
            address="local", num_cpus=int(node["CPU"]), num_gpus=int(node["GPU"]), include_dashboard=None, **common
        )
        return
    try:
        ray.init(address=address, **common)
    except ConnectionError as e:
        raise PlacementError(
            f"--address {address}: no Ray answers there ({e}). Is the head running, and does its token "
            "(RAY_AUTH_TOKEN, ~/.ray/auth_token) match?"
        ) from None


def local_node() -> dict[str, float]:
    """Return what a Ray started here will have: CPU and GPU counts."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cpus = os.cpu_count() or 1
    return {"CPU": float(cpus), "GPU": float(_count_gpus())}


def _count_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [v.strip() for v in visible.split(",")]
        return len(list(itertools.takewhile(lambda v: v.isdigit() or v.startswith(("GPU-", "MIG-")), names)))
    drivers = Path("/proc/driver/nvidia/gpus")
    return len(list(drivers.glob("*"))) if drivers.exists() else 0
