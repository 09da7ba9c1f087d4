"""The actor that executes visits of many clients on a fixed share of CPU and GPU."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.messages import ActorInfo, Memory, RunSetup
from rayfed.engine.messages import CallResult, Job

GPU_SHARE = 0.94  # of an actor's share of a card that torch may take: CUDA itself takes some in each process, uncounted


class ClientActor:
    """One worker in its own process. Holds the runs' data and tasks, no client's state between calls."""

    def __init__(self, number: int, threads: int, gpus: float, keep: int = 4, imports: Sequence[str] = ()):
        """number: of the actor; threads: of torch; gpus: its share; keep: runs that stay resident; imports: modules to begin with."""
        if not gpus:
            # Ray leaves the variable alone at a zero share, and the actor would see every GPU of the node.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import torch

        from rayfed.engine.worker import Worker
        from rayfed.execute.tuning import kernels, process

        process.prepare()
        for name in imports:
            importlib.import_module(name)
        process.freeze_imports()
        torch.set_num_threads(threads)
        device = "cpu"
        if gpus and torch.cuda.is_available():
            device = "cuda"
            kernels.prepare_gpu()
            torch.cuda.set_per_process_memory_fraction(1.0 if gpus >= 1 else GPU_SHARE * gpus)
        self.number, self.worker = number, Worker(device, keep)

    def __repr__(self) -> str:
        return f"ClientActor({self.number}, {self.worker.device})"

    def locate(self) -> ActorInfo:
        """Return where this actor is, for the run's records."""
        import ray
        import torch

        node = ray.get_runtime_context().get_node_id()
        return ActorInfo(os.getpid(), node, self.worker.device, torch.get_num_threads())

    def ping(self) -> None:
        """Do nothing; a call of this fails where the actor is gone."""

    def measure_memory(self) -> Memory:
        """Measure what this process holds, in RAM and on its GPU."""
        from actors.ray_metrics import measure_memory

        return measure_memory(self.worker.device == "cuda")

    def setup(self, setup: RunSetup, federation: dict[str, Any], start: Any) -> str:
        """Make a run resident and return this actor's node.

        federation: `Federation.numpy()`, shared by all actors of the node; start: what the run starts from, see
        `rayfed.models.start.start_from`.
        """
        from rayfed.config import user_code
        from rayfed.config.schema import Config
        from rayfed.partition import Federation

        user_code.install(setup.code)
        self.worker.setup(setup.run, Config.from_dict(setup.config), Federation.from_numpy(federation), start)
        ray = sys.modules.get("ray")
        return str(ray.get_runtime_context().get_node_id()) if ray and ray.is_initialized() else ""

    def execute_job(self, job: Job, separate_folds: bool, *values: Any) -> tuple[Any, Any, Any, Any]:
        """Execute a job whose payloads are resolved: (result, large parts, client states, folds), each an object of the caller's.

        separate_folds: whether folds are an object of their own, to be merged on this node, or a part of the result.
        """
        result, large, states = self.worker.do(job, values)
        if separate_folds and isinstance(result, CallResult):
            return replace(result, folded=None), large, states, result.folded
        return result, large, states, None

    def merge(self, left: Any, right: Any) -> Any:
        """Merge two neighbouring calls' folds, on the CPU like at the server."""
        from rayfed import fold

        return fold.to_numpy(fold.merge_parts(fold.from_numpy(left), fold.from_numpy(right)))
