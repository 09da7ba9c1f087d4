"""The driver: starts or joins Ray, places the server, follows it. Never imports torch."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.dashboard_names import RoundNames, job_metadata, run_name
from actors.messages import RunRequest
from actors.placement import Plan, nodes_of, plan_largest, shrink
from actors.session import RayLost, Session, local_node
from rayfed import models, track
from rayfed.config import phases, user_code
from rayfed.engine.cohorts import may_begin_alone
from rayfed.errors import PlacementError, RunFailed
from rayfed.execute.choice import Choice
from rayfed.launch import start as launch
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder, read_metrics
from rayfed.storage.run_status import RunStatus
from rayfed.storage.snapshots import list_snapshots

if TYPE_CHECKING:
    from rayfed.config.schema import Config, Study
    from rayfed.engine.runner import Ending
    from rayfed.partition import Federation

POLL_S = 0.3  # between two questions for the server's status
ANSWER_S = 5.0  # for the last one's answer
SOON_S = 5.0  # for a place to become free before fewer actors are asked for, and
FREE_S = 55.0  # after that


class RayLauncher:
    """Computes on a Ray session; one server and one pool of actors serve all runs of a request."""

    def __init__(self, address: str | None = None, scale_up: float = 0.0):
        """address: as `Session` takes it; scale_up: seconds that the cluster's autoscaler has for what is missing, 0: it is not
        asked. Raises ConfigError as `Session`."""
        self.session, self.scale_up = Session(address), scale_up
        self.server: Any = None
        self.group: Any = None
        self.live: Mapping[str, Any] = {}  # the newest status of the current run
        self.shared: tuple[Federation, Any] | None = None  # the newest split and its object

    def warm_up(self, configs: Sequence[Config]) -> None:
        """Start a local Ray and the server on it; a cluster is joined only by a request that is right."""
        if self.session.local:
            self.start(configs)

    def _connect(self, configs: Sequence[Config]) -> None:
        if self.session.local and not self.session.connected:
            plan_largest(configs, [local_node()])  # a local Ray has exactly this machine: refuse before starting it
        self.session.connect(job_metadata(configs), monitored=any("prometheus" in c.track for c in configs))

    def start(self, configs: Sequence[Config]) -> None:
        """Connect, plan, reserve one placement group, start the server, once. Raises PlacementError before any actor starts."""
        if self.server is not None:
            return
        self._connect(configs)
        import ray  # not before: a session chooses how

        try:
            wanted = plan_largest(configs, nodes_of(ray.nodes()))
        except PlacementError as missing:
            if self.session.local or not self.scale_up:
                raise
            wanted = _scale_up(configs, self.scale_up, missing)
        least = max((int(c.resources.actors) for c in configs if c.resources.actors != "auto"), default=1)
        phases.begin("placing actors")
        wanted = self._reserve(wanted, min(least, wanted.actors))
        imports = {m for c in configs for m in models.imports(c.task.model)}
        late = self.session.local and not wanted.gpus and all(map(may_begin_alone, configs))
        self._place(configs[0].name, wanted, sorted(imports), late)

    def _reserve(self, wanted: Plan, least: int) -> Plan:
        """Reserve the placement group of a plan, or of one with fewer actors where others hold what is missing; return the plan.

        least: actors that it must have. Raises PlacementError where its place does not become free.
        """
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group

        self.group = placement_group(wanted.bundles(), strategy="PACK")
        if self.group.wait(timeout_seconds=SOON_S):
            return wanted
        remove_placement_group(self.group)
        wanted = shrink(wanted, ray.available_resources(), least)
        self.group = placement_group(wanted.bundles(), strategy="PACK")
        if self.group.wait(timeout_seconds=FREE_S):
            return wanted
        free = ray.available_resources()
        remove_placement_group(self.group)
        self.group = None
        held = _held_here()
        raise PlacementError(
            f"resources: {wanted.actors} actors of {wanted.cpus:g} CPU and {wanted.gpus:g} GPU are not free on this cluster now "
            f"(free: {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU{held}). Wait for other jobs, or lower resources.actors"
            + (", or start fewer of these tasks at a time." if held else ".")
        )

    def _place(self, name: str, wanted: Plan, imports: Sequence[str], late: bool) -> None:
        """Start the server in the placement group, or on this node if it asks for nothing.

        name: the experiment's; imports: modules that the actors begin with; late: whether client actors may start after it.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

        from actors.server import ServerActor

        bundles = wanted.bundles()
        label = f"rayfed/{name}-{os.getpid()}"
        if self.session.attached:  # this process may have several runs in it
            label += f"-{secrets.token_hex(2)}"
        here = ray.get_runtime_context().get_node_id()
        owns_bundle = len(bundles) > wanted.actors
        where: Any = NodeAffinitySchedulingStrategy(here, soft=wanted.server_anywhere)
        if owns_bundle:
            where = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=len(bundles) - 1)
        options = {
            "name": f"{label}/server", "num_cpus": wanted.server_cpus, "num_gpus": wanted.server_gpus,
            "max_concurrency": 6, "max_restarts": 0, "scheduling_strategy": where,
        }  # fmt: skip
        self.server = (
            ray.remote(ServerActor).options(**options).remote(wanted, self.group, label, Owner.me(), imports, late)
        )

    def execute(self, config: Config, federation: Federation, folder: RunFolder, watch: launch.Watch) -> Ending:
        """Let the server execute a run and follow it to its end.

        Raises what broke there; RunFailed where the server or its Ray died, unless all rounds are committed: the run is then
        ended in this process.
        """
        from ray.exceptions import RayActorError, RayTaskError

        study = folder.path.parent.parent
        whole = study if (study / "study.yaml").is_file() else folder.path
        self.session.resume = f"What is committed stays; continue with: rayfed resume {whole}"
        try:
            return self._follow(config, federation, folder, watch)
        except RayTaskError as e:
            cause = getattr(e, "cause", None)
            raise (cause if isinstance(cause, Exception) else RunFailed(str(e))) from None
        except (RayActorError, RayLost) as e:
            if not _all_committed(config, folder.path):
                raise RunFailed(f"{self._loss(e)}\n{self.session.resume}") from None
        return _end_here(config, federation, folder.path, watch)

    def _loss(self, error: Exception) -> str:
        """Say what is gone: Ray, where its end is what killed the server."""
        try:
            self.session.check(now=True)
        except RayLost as lost:
            return str(lost)
        return f"the server actor died: {error}"

    def _follow(self, config: Config, federation: Federation, folder: RunFolder, watch: launch.Watch) -> Ending:
        """Follow a run on the server. Raises Ray's errors, and RayLost."""
        import ray

        self.session.check()
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
        names, asked = RoundNames(self.server, config), self.server.state.remote()
        while True:  # no call waits for ever: what is lost never answers
            ended, _ = ray.wait([done], timeout=POLL_S)
            self.session.check()
            if ended:  # once more, for its last status
                asked = self.server.state.remote()
            if ray.wait([asked], timeout=ANSWER_S if ended else 0)[0]:
                state, asked = ray.get(asked), self.server.state.remote()
                self.live = state.live
                watch(state.live)
                if not ended:
                    names.show(state)
            if ended:
                return ray.get(done)

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
        """End the actors, and leave Ray as the session does."""
        if self.session.connected:
            with contextlib.suppress(RayLost):
                self.session.check(now=True)
                self._release()
        self.session.close()

    def _release(self) -> None:
        """End the server and its actors, and give back their place. What is dead has nothing left to close."""
        import ray

        server, group = self.server, self.group
        self.server = self.group = self.shared = None
        if server is not None:
            with contextlib.suppress(Exception):
                ray.get(server.close.remote(), timeout=5)
            with contextlib.suppress(Exception):
                ray.kill(server)
        if group is not None:
            with contextlib.suppress(Exception):
                ray.util.remove_placement_group(group)


def _held_here() -> str:
    """Say what this process itself holds, where it is a task or an actor of Ray; in a driver the empty string."""
    import ray

    context = ray.get_runtime_context()
    if context.get_task_id() is None:
        return ""
    held = context.get_assigned_resources()
    return f"; the task that starts this run holds {held.get('CPU', 0):g} CPU, {held.get('GPU', 0):g} GPU itself"


def _all_committed(config: Config, path: Path) -> bool:
    """Return whether no round of a run is left, and none has to be computed again: the last one's snapshot lasts."""
    reached = max((r for r, _ in list_snapshots(path / "snapshots")), default=0)
    return launch.has_ended(path, config.rounds) or min(reached, read_metrics(path).num_rows) >= config.rounds


def _end_here(config: Config, federation: Federation, path: Path, watch: launch.Watch) -> Ending:
    """End a run whose rounds are all committed in this process: write its models and its summary, where they are missing."""
    from rayfed.engine.runner import Ending

    if launch.has_ended(path, config.rounds):
        return Ending(RunStatus.DONE, config.rounds)
    folder, here = RunFolder.open(path, owner=Owner.me()), launch.LocalLauncher()
    config = Choice.from_config(folder.config).apply(config)
    here.start([config])
    return here.execute(config, federation, folder, watch)


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
        address: as `Session` takes it.
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
    accept_changes: bool = False,
    address: str | None = None,
    scale_up: float = 0.0,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> launch.Finished:
    """Continue a run or a study on Ray, as `rayfed resume`. sets: overrides of what may change; accept_changes: as in
    `rayfed.launch.start.resume_request`; the others as in `run_on_ray`."""
    launcher = RayLauncher(address, scale_up)
    try:
        return launch.resume_request(path, launcher, sets=sets, accept_changes=accept_changes, watch=watch)
    finally:
        launcher.close()
