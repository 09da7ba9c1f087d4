"""The actor that executes visits of many clients on a fixed share of CPU and GPU."""

from __future__ import annotations

import os
from typing import Any

from rayfed.worker import Job


class ClientActor:
    """One worker in its own process. Holds the runs' data and tasks, no client's state between calls."""

    def __init__(self, number: int, threads: int, gpus: float):
        if not gpus:
            # Ray leaves the variable alone at a zero share, and the actor would see every GPU of the node.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import torch

        from rayfed.worker import Worker

        torch.set_num_threads(threads)
        device = "cpu"
        if gpus and torch.cuda.is_available():
            device = "cuda"
            torch.cuda.set_per_process_memory_fraction(min(1.0, gpus))
        self.number, self.worker = number, Worker(device)

    def __repr__(self) -> str:
        return f"ClientActor({self.number})"

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

    def setup(
        self, run: str, config: dict[str, Any], federation: dict[str, Any], start: Any, code: dict[str, bytes]
    ) -> None:
        """Make a run resident. `federation` is `Federation.numpy()`, shared by all actors of the node; `code`: the user's
        own files by their names in the config, which need not exist on this node."""
        from rayfed import session
        from rayfed.config import Config
        from rayfed.partition import Federation

        session.install(code)
        self.worker.setup(run, Config.from_dict(config), Federation.from_numpy(federation), start)

    def do(self, job: Job, *values: Any) -> tuple[Any, Any, Any]:
        """A job with its payloads resolved: (small answer, large parts, client states), each an object of the caller's."""
        return self.worker.do(job, values)
