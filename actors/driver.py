"""The driver: starts or joins Ray, places the server, follows it. Never imports torch."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.dashboard_names import RoundNames, job_metadata, run_name
from actors.messages import RunRequest
from actors.placement import Plan, nodes_of, plan_largest
from actors.session import connect, local_node
from rayfed import models, track
from rayfed.config import user_code
from rayfed.errors import PlacementError, RunFailed
from rayfed.launch import start as launch
from rayfed.storage.owner import Owner

if TYPE_CHECKING:
    from rayfed.config.schema import Config, Study
    from rayfed.engine.runner import Ending
    from rayfed.partition import Federation
    from rayfed.storage.run_folder import RunFolder

POLL_S = 0.3  # between two questions for the server's status


class RayLauncher:
    """Starts a local Ray, or joins a cluster; one server and one pool of actors serve all runs of a request."""

    def __init__(self, address: str | None = None, scale_up: float = 0.0):
        """address: "local", "auto" or a cluster's; scale_up: seconds that the cluster's autoscaler has for what is missing, 0: it
        is not asked."""
        self.address, self.scale_up = address or os.environ.get("RAY_ADDRESS") or "local", scale_up
        self.server: Any = None
        self.group: Any = None
        self.connected = self.ours = False
        self.live: Mapping[str, Any] = {}  # the newest status of the current run
        self.shared: tuple[Federation, Any] | None = None  # the newest split and its object

    def warm_up(self, configs: Sequence[Config]) -> None:
        """Start a local Ray; a cluster is joined only by a request that is right."""
        if self.address == "local":
            self._connect(configs)

    def _connect(self, configs: Sequence[Config]) -> None:
        if self.connected:
            return
        if self.address == "local":
            plan_largest(configs, [local_node()])  # a local Ray has exactly this machine: refuse before starting it
        connect(self.address, job_metadata(configs))
        self.connected, self.ours = True, self.address == "local"

    def start(self, configs: Sequence[Config]) -> None:
        """Connect, plan, reserve one placement group, start the server. Raises PlacementError before any actor starts."""
        import ray

        self._connect(configs)
        try:
            wanted = plan_largest(configs, nodes_of(ray.nodes()))
        except PlacementError as missing:
            if self.ours or not self.scale_up:
                raise
            wanted = _scale_up(configs, self.scale_up, missing)
        imports = {m for c in configs for m in models.imports(c.task.model)}
        self._place(configs[0].name, wanted, sorted(imports))

    def _place(self, name: str, wanted: Plan, imports: Sequence[str]) -> None:
        """Reserve the placement group and start the server in it, or on this node if it asks for nothing.

        name: the experiment's; imports: modules that the actors begin with.
        """
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

        from actors.server import ServerActor

        bundles = wanted.bundles()
        self.group = placement_group(bundles, strategy="PACK")
        if not self.group.wait(timeout_seconds=60):
            free = ray.available_resources()
            ray.util.remove_placement_group(self.group)
            raise PlacementError(
                f"resources: {wanted.actors} actors of {wanted.cpus:g} CPU and {wanted.gpus:g} GPU are not free on this cluster now "
                f"(free: {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU). Wait for other jobs, or lower resources.actors."
            )
        label = f"rayfed/{name}-{os.getpid()}"
        here = ray.get_runtime_context().get_node_id()
        owns_bundle = len(bundles) > wanted.actors
        where: Any = NodeAffinitySchedulingStrategy(here, soft=wanted.server_anywhere)
        if owns_bundle:
            where = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=len(bundles) - 1)
        options = {
            "name": f"{label}/server", "num_cpus": wanted.server_cpus, "num_gpus": wanted.server_gpus,
            "max_concurrency": 6, "max_restarts": 0, "scheduling_strategy": where,
        }  # fmt: skip
        self.server = ray.remote(ServerActor).options(**options).remote(wanted, self.group, label, Owner.me(), imports)

    def execute(self, config: Config, federation: Federation, folder: RunFolder, watch: launch.Watch) -> Ending:
        """Let the server execute a run and follow it to its end. Raises what broke there, RunFailed where the server died."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        values = config.to_dict()
        request = RunRequest(
            path=str(folder.path.resolve()),
            fence=folder.fence,
            config=values,
            federation=self._put(federation),
            code=user_code.used(values),
            environment=track.environment(),
        )
        done = self.server.execute_run.options(name=run_name(config, folder.path)).remote(request)
        names = RoundNames(self.server, config)
        while True:
            try:
                ready, _ = ray.wait([done], timeout=POLL_S)
                state = ray.get(self.server.state.remote())
                self.live = state.live
                watch(state.live)
                if ready:
                    return ray.get(done)
                names.show(state)
            except RayTaskError as e:
                cause = getattr(e, "cause", None)
                raise (cause if isinstance(cause, Exception) else RunFailed(str(e))) from None
            except RayActorError as e:
                raise RunFailed(f"the server actor died: {e}\nContinue with: rayfed resume {folder.path}") from None

    def _put(self, federation: Federation) -> Any:
        """Put the split into the object store, once for all runs on it; this process reads it there from then on."""
        import ray

        if self.shared is None or self.shared[0] is not federation:
            self.shared = None  # the one before may go
            ref = ray.put(federation.numpy())
            there = ray.get(ref)
            federation.arrays.update({n: there[f"arrays/{n}"] for n in federation.arrays})
            self.shared = (federation, ref)
        return self.shared[1]

    def stop(self) -> None:
        """Ask the current run to end after committing its round."""
        if self.server is not None:
            self.server.stop.remote()

    def status(self) -> Mapping[str, Any]:
        """Return the newest status of the current run."""
        return self.live

    def close(self) -> None:
        """End the actors, and the Ray of this process."""
        import ray

        if not ray.is_initialized():
            return
        try:
            if self.server is not None:
                ray.get(self.server.close.remote(), timeout=5)
                ray.kill(self.server)
            if self.group is not None:
                ray.util.remove_placement_group(self.group)
        except Exception:  # a dead server has nothing left to close; Ray ends what it owned
            pass
        finally:
            ray.shutdown()


def _scale_up(configs: Sequence[Config], seconds: float, missing: PlacementError) -> Plan:
    """Ask the autoscaler for nodes and return the plan once they are there.

    missing: why the cluster is too small now. Raises PlacementError, with it, where it still is after so many seconds.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    r = max((c.resources for c in configs), key=lambda r: 0 if r.actors == "auto" else r.actors)
    gpus = 0.0 if r.gpus_per_actor == "auto" else float(r.gpus_per_actor)
    actors, server = 1 if r.actors == "auto" else int(r.actors), r.server
    asked = Plan(actors, float(r.cpus_per_actor), gpus, 1, server.cpus, server.gpus, server.place == "any")
    request_resources(bundles=asked.bundles())
    end = time.monotonic() + seconds
    try:
        while True:
            with contextlib.suppress(PlacementError):
                return plan_largest(configs, nodes_of(ray.nodes()))
            if time.monotonic() > end:
                raise PlacementError(
                    f"{missing} The cluster's autoscaler was asked for it, and {seconds:g} s (--scale-up) were not enough."
                )
            time.sleep(1)
    finally:
        request_resources(bundles=[])  # what runs keeps its nodes; nothing is held back for later


def run_on_ray(
    request: Config | Study,
    *,
    out: str | Path | None = None,
    address: str | None = None,
    scale_up: float = 0.0,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> launch.Finished:
    """Run a config or a study on Ray, as `rayfed run`.

    Arguments:
        out: folder of the run folder, or a URI, instead of `storage.path`.
        address: "local", "auto" or a cluster's; default: RAY_ADDRESS, or local.
        scale_up: seconds that the cluster's autoscaler has for what is missing.
        watch: is called with the live status.

    Raises the errors of `rayfed.errors`; what was committed stays.
    """
    launcher = RayLauncher(address, scale_up)
    try:
        return launch.start_request(request, launcher, out=out, watch=watch)
    finally:
        launcher.close()


def resume_on_ray(
    path: str | Path,
    *,
    sets: Sequence[str] = (),
    address: str | None = None,
    scale_up: float = 0.0,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> launch.Finished:
    """Continue a run or a study on Ray, as `rayfed resume`. sets: overrides of what may change; the others as in `run_on_ray`."""
    launcher = RayLauncher(address, scale_up)
    try:
        return launch.resume_request(path, launcher, sets=sets, watch=watch)
    finally:
        launcher.close()
