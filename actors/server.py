"""The server actor: the engine's rounds in one thread, status and stop answered from another."""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Sequence
from typing import Any

from actors.placement import Plan
from rayfed.errors import RunFailed

LOOK_S = 0.1  # between two looks whether the driver lives: rounds may take less


class ServerActor:
    """Owns the client actors and the state of the run in hand; stops when the driver that made it is gone."""

    def __init__(self, plan: Plan, group: Any, name: str, driver: dict[str, Any] | None, imports: Sequence[str] = ()):
        from actors.pool import RayPool

        self.driver, self.name, self.looked = driver, name, -math.inf
        self.runner: Any = None
        self.stopping = False
        self.pool = RayPool(plan, group, name, imports=imports)  # its actors import torch while this process does
        import torch

        from rayfed.execute.tuning import process

        process.defer_compiler()
        torch.set_num_threads(plan.threads)
        for module in imports:
            importlib.import_module(module)
        process.freeze_imports()

    def __repr__(self) -> str:
        return f"ServerActor({self.name}, {self.pool.plan.actors} client actors)"

    def ready(self) -> dict[str, Any]:
        """All client actors run: who is where."""
        return {"server": os.getpid(), "clients": self.pool.about()}

    def run(
        self,
        path: str,
        fence: int,
        config: dict[str, Any],
        federation: list[Any],
        code: dict[str, bytes],
        environment: dict[str, str],
    ) -> tuple[str, int]:
        """One run from its folder's last snapshot to its end: (status, round).

        federation: a reference of `Federation.numpy()`, in a list so that it arrives as one: the actors get the same object;
        code: the user's own files by their names in the config; environment: the driver's variables for sinks.
        """
        from pathlib import Path

        import ray

        from rayfed.config import user_code
        from rayfed.config.schema import Config
        from rayfed.engine.failures import FailurePolicy
        from rayfed.engine.runner import Runner
        from rayfed.partition import Federation, split_key
        from rayfed.storage.run_folder import RunFolder

        os.environ.update(environment)
        user_code.install(code)
        resolved = Config.from_dict(config)
        self.pool.data = {split_key(resolved.to_dict()): federation[0]}
        self.pool.policy = FailurePolicy.of(resolved.failures)
        folder = RunFolder.attach(Path(path), fence)
        folder.event("placed", **self.ready())
        self.pool.on_restart = lambda **about: folder.event("actor restarted", **about)
        self.runner = Runner(
            resolved, Federation.from_numpy(ray.get(federation[0])), self.pool, folder, before_commit=self._driver_lives
        )
        if self.stopping:
            self.runner.stop()
        return tuple(self.runner.execute())

    def status(self) -> dict[str, Any]:
        """The live state of the run in hand (see state.json)."""
        return dict(self.runner.status) if self.runner is not None else {"status": "starting"}

    def during(self, run: str, until: int) -> None:
        """Lasts until this run's round `until` is committed or the run ends: its name tells Ray's pages what goes on."""
        while (now := self.status()).get("run") == run and now["status"] in ("starting", "running"):
            if now["round"] >= until:
                return
            time.sleep(0.2)

    def stop(self) -> None:
        """Commit the round in hand and end."""
        self.stopping = True
        if self.runner is not None:
            self.runner.stop()

    def close(self) -> None:
        self.pool.close()

    def _driver_lives(self) -> None:
        if self.driver is None:  # detached: the run may outlive whoever started it
            return
        if time.monotonic() < self.looked + LOOK_S:
            return
        self.looked = time.monotonic()
        import socket

        import psutil

        if socket.gethostname() != self.driver["host"]:
            return
        try:
            alive = abs(psutil.Process(self.driver["pid"]).create_time() - self.driver["start"]) < 1
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            raise RunFailed("the driver of this run is gone; nothing more is committed")
