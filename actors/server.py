"""The server actor: executes the engine's rounds in one thread, answers for its state and stops from another."""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.messages import PlacedActors, RunRequest, ServerState
from actors.placement import Plan
from rayfed.errors import RunFailed
from rayfed.storage.owner import Owner

if TYPE_CHECKING:
    from rayfed.engine.runner import Ending, Runner

CHECK_S = 0.1  # between two checks whether the driver lives: rounds may take less
WAIT_S = 0.2  # between two checks whether a round is committed
WORTH_S = 8.0  # of rounds that are left, from which on client actors repay their start: seconds of CPU each


class ServerActor:
    """Owns the client actors and the state of the current run; stops when the driver that made it is gone."""

    def __init__(
        self, plan: Plan, group: Any, name: str, driver: Owner | None, imports: Sequence[str] = (), late: bool = False
    ):
        """Start the client actors; late: once an ask needs them, or much of the run is left.

        group: their placement group; name: of the actors, as a path; driver: None for a server that outlives it; imports: modules
        that actors begin with.
        """
        from actors.pool import RayPool

        self.driver, self.name, self.checked = driver, name, -math.inf
        self.runner: Runner | None = None
        self.stopping = False
        self.pool = RayPool(
            plan, group, name, imports=imports, late=late
        )  # its actors import torch while this process does
        import torch

        from rayfed.execute.tuning import process

        process.defer_compiler()
        torch.set_num_threads(plan.threads)
        for module in imports:
            importlib.import_module(module)
        process.freeze_imports()

    def __repr__(self) -> str:
        return f"ServerActor({self.name}, {self.pool.plan.actors} client actors)"

    def locate_actors(self) -> PlacedActors:
        """Return where the server and those client actors are that take calls."""
        return PlacedActors(os.getpid(), self.pool.locate_actors())

    def execute_run(self, request: RunRequest) -> Ending:
        """Execute a run from its folder's last snapshot to its end. Raises what broke; see `Runner.execute`."""
        import ray

        from rayfed.config import user_code
        from rayfed.config.schema import Config
        from rayfed.engine.failures import FailurePolicy
        from rayfed.engine.runner import Runner
        from rayfed.partition import Federation, split_key
        from rayfed.storage.run_folder import RunFolder

        os.environ.update(request.environment)
        user_code.install(request.code)
        config = Config.from_dict(request.config)
        self.pool.data = {split_key(config.to_dict()): request.federation}
        self.pool.policy = FailurePolicy.of(config.failures)
        folder = RunFolder.attach(Path(request.path), request.fence)
        folder.event("placed", **self.locate_actors().to_event())
        self.pool.on_restart = lambda **about: folder.event("actor restarted", **about)
        self.pool.on_started = lambda: folder.event("placed", **self.locate_actors().to_event())
        federation = Federation.from_numpy(ray.get(request.federation))
        self.runner = Runner(config, federation, self.pool, folder, before_commit=self._before_commit)
        if self.stopping:
            self.runner.stop()
        return self.runner.execute()

    def state(self) -> ServerState:
        """Return how the current run stands."""
        return ServerState.of(self.runner.live()) if self.runner is not None else ServerState()

    def wait_for_round(self, run: str, until: int) -> None:
        """Return once this run's round `until` is committed, or the run ends. Ray's pages show the call's name while it waits."""
        while (now := self.state()).run == run and not now.status.ended and now.round < until:
            time.sleep(WAIT_S)

    def stop(self) -> None:
        """Let the current run end after committing its round."""
        self.stopping = True
        if self.runner is not None:
            self.runner.stop()

    def close(self) -> None:
        """End the client actors."""
        self.pool.close()

    def _before_commit(self) -> None:
        self._check_driver()
        if self.runner is not None and self.runner.seconds_left() > WORTH_S:
            self.pool.start()  # while the rounds go on

    def _check_driver(self) -> None:
        """Raise RunFailed where the driver is gone, so that nothing more is committed."""
        if self.driver is None or time.monotonic() < self.checked + CHECK_S:
            return
        self.checked = time.monotonic()
        if not self.driver.alive():
            raise RunFailed("the driver of this run is gone; nothing more is committed")
