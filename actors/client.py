"""The actor that executes visits of many clients on a fixed share of CPU and GPU."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rayfed.engine.messages import CallResult, Job


class ClientActor:
    """One worker in its own process. Holds the runs' data and tasks, no client's state between calls."""

    def __init__(self, number: int, threads: int, gpus: float, keep: int = 4, imports: Sequence[str] = ()):
        if not gpus:
            # Ray leaves the variable alone at a zero share, and the actor would see every GPU of the node.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import torch

        from rayfed.engine.worker import Worker
        from rayfed.execute.tuning import process

        process.prepare()
        for name in imports:
            importlib.import_module(name)
        process.freeze_imports()
        torch.set_num_threads(threads)
        device = "cpu"
        if gpus and torch.cuda.is_available():
            device = "cuda"
            # What CUDA itself takes in each process is not counted: shares of one card must leave it room.
            torch.cuda.set_per_process_memory_fraction(1.0 if gpus >= 1 else 0.94 * gpus)
        self.number, self.worker = number, Worker(device, keep)

    def __repr__(self) -> str:
        return f"ClientActor({self.number}, {self.worker.device})"

    def about(self) -> dict[str, Any]:
        """Process, node and device, for the run's records and for tests."""
        import ray
        import torch

        return {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "device": self.worker.device,
            "threads": torch.get_num_threads(),
        }

    def alive(self) -> None:
        """Nothing; an actor that is gone cannot even do that."""

    def memory(self) -> dict[str, float]:
        """Bytes that this process holds, in RAM and on its GPU."""
        from actors.monitor import memory

        return memory(self.worker.device == "cuda")

    def setup(
        self, run: str, config: dict[str, Any], federation: dict[str, Any], start: Any, code: dict[str, bytes]
    ) -> str:
        """Make a run resident; returns this actor's node. `federation` is `Federation.numpy()`, shared by all actors of the
        node; `code`: the user's own files by their names in the config, which need not exist on this node."""
        from rayfed.config import user_code
        from rayfed.config.schema import Config
        from rayfed.partition import Federation

        user_code.install(code)
        self.worker.setup(run, Config.from_dict(config), Federation.from_numpy(federation), start)
        ray = sys.modules.get("ray")
        return str(ray.get_runtime_context().get_node_id()) if ray and ray.is_initialized() else ""

    def do(self, job: Job, apart: bool, *values: Any) -> tuple[Any, Any, Any, Any]:
        """Do a job whose payloads are resolved: (result, large parts, client states, folds), each an object of the caller's.

        apart: whether folds are an object of their own, to be merged here, or a part of the result.
        """
        result, large, states = self.worker.do(job, values)
        if apart and isinstance(result, CallResult):
            return replace(result, folded=None), large, states, result.folded
        return result, large, states, None

    def merge(self, left: Any, right: Any) -> Any:
        """Two neighbouring calls' folds merged, on the CPU like at the server."""
        from rayfed import fold

        return fold.to_numpy(fold.merge_parts(fold.from_numpy(left), fold.from_numpy(right)))
