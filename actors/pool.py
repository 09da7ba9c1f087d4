"""The pool of client actors on Ray: pull-based, two calls in flight per actor, dead actors replaced and their calls repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.client import ClientActor
from actors.job_queue import JobQueue
from actors.merge import LocatedFolds, NodeMerging
from actors.messages import ActorInfo, RunSetup
from actors.placement import Plan
from actors.ray_metrics import RayMetrics
from rayfed import tree
from rayfed.config import user_code
from rayfed.engine.failures import ActorDeath, FailurePolicy, Raise
from rayfed.engine.messages import CallResult, Job, VisitCall, label
from rayfed.engine.pool import Merging, Outcome
from rayfed.engine.resident import Resident
from rayfed.engine.worker import Worker
from rayfed.errors import RunFailed
from rayfed.execute.tuning import process
from rayfed.partition import split_key
from rayfed.track import prometheus
from rayfed.tree import Tree

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.execute.tuning.autotune import Timing
    from rayfed.partition import Federation

INLINE_BYTES = (
    64 * 2**10
)  # up to here a payload travels with its calls; Ray keeps arguments of up to 100 kB out of its store
CHECK_S = 0.5  # between two checks of actors that have nothing to do
ALONE_S = 1.0  # of an ask's work, estimated: with more, the first actors are waited for
IN_FLIGHT = 2  # calls per actor: one runs while the next one's arguments arrive


class _SharedSetup(NamedTuple):
    """A run's setup as all actors get it. split: key of its data; federation, start: references, start None where there is none."""

    setup: RunSetup
    split: str
    federation: Any
    start: Any


class _CallInFlight(NamedTuple):
    """A call under way: its job's number, its actor, and references of what it returns in addition to its result."""

    job: int
    actor: int
    large: Any
    states: Any
    folds: Any


class RayPool:
    """Client actors in one placement group. Owned by the server: what calls return belongs to this process.

    Attributes that the server sets for each run: `policy`, `on_restart` (called with the event's fields), `on_started` (called
    when the last of actors that started late is ready), `data` (split -> its reference, where it is in the store already).
    """

    def __init__(
        self,
        plan: Plan,
        group: Any,
        name: str,
        *,
        first: int = 0,
        keep: int = Worker.RUNS,
        imports: Sequence[str] = (),
        late: bool = False,
    ):
        """Start the actors, or leave that to `start`, which the first ask that needs them also calls (late).

        group: their placement group; name: of the actors, as a path; first: bundle of the first actor; keep: runs that stay
        resident, the newest ones; imports: modules that actors begin with.
        """
        self.plan, self.group, self.name, self.first, self.keep = plan, group, name, first, keep
        self.imports = tuple(imports)
        self.policy = FailurePolicy()
        self.on_restart: Callable[..., None] = lambda **about: None
        self.on_started: Callable[[], None] = lambda: None
        self.data: dict[str, Any] = {}
        self.restarts, self.adopts = 0, not plan.gpus
        self.queued = 0  # calls that wait or are under way
        self.timings: dict[str, Timing] = {}
        self.local_worker = Worker(keep=keep)  # of runs of which jobs are done in this process
        self._adopted: set[str] = set()  # runs whose single jobs are done in this process
        self._alone: dict[
            str, float
        ] = {}  # runs that may begin in this process -> estimated seconds of a client's visit
        prometheus.set_exporter(lambda labels: RayMetrics(labels, self))
        self._late = late  # whether actors that start late are not all there yet
        self.actors: list[Any] = [] if late else [self._start(i) for i in range(plan.actors)]
        self.nodes: dict[int, str] = {}  # actor -> its node, once it is known
        # An actor that starts late, or a dead one's successor, which may have to wait for a node -> its last setup.
        self._starting: dict[int, Any] = {}
        self._failed_starts = [0] * plan.actors  # times that a successor died before it was ready
        self._pings: Sequence[tuple[Any, Any]] = ()  # (actor, reference of its answer)
        self._pinged = 0.0
        self._runs: dict[str, _SharedSetup] = {}
        self._start_values: dict[str, Any] = {}  # task and start of a run -> reference of what it starts from
        self._named: dict[tuple[int, str], tuple[Any, Any]] = {}
        # Whether the newest merging takes folds on their nodes: the same for all calls of an ask, also those that are repeated.
        self._on_nodes = False
        self._merges = 0

    # -- actors --------------------------------------------------------------------------------------------------------

    def _start(self, i: int) -> Any:
        number = i if not self.restarts else f"{i}.{self.restarts}"
        options: dict[str, Any] = {
            "name": f"{self.name}/client-{number}",
            "num_cpus": self.plan.cpus,
            "num_gpus": self.plan.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self.group, placement_group_bundle_index=self.first + i
            ),
        }
        made = ray.remote(ClientActor).options(**options)
        return made.remote(i, self.plan.threads, self.plan.gpus, self.keep, self.imports)

    def start(self) -> None:
        """Start actors that were to start late. May be called again; who is ready joins at the next ask."""
        if self.actors:
            return
        self.actors = [self._start(i) for i in range(self.plan.actors)]
        for i in range(len(self.actors)):
            self._send_setups(i)

    def setup(self, run: str, config: Config, federation: Federation, start: Any) -> None:
        """Make a run resident in every actor. start: what it starts from, see `rayfed.models.start.start_from`."""
        values = config.to_dict()
        split = split_key(values)
        # The data goes to the store once, whatever the number of setups, actors and runs on the same split.
        known = [r.federation for r in self._runs.values() if r.split == split]
        data = known[0] if known else self.data.get(split) or ray.put(federation.numpy())
        same = json.dumps([values[k] for k in ("task", "init")], sort_keys=True)
        if (
            start is not None and same not in self._start_values
        ):  # a base model once per node, whatever the number of runs
            self._start_values = {same: ray.put(start)}
        setup = RunSetup(run, values, user_code.used(values))
        self._runs[run] = _SharedSetup(setup, split, data, start and self._start_values[same])
        while len(self._runs) > self.keep:
            del self._runs[next(iter(self._runs))]
        pending = {i: self._send_setup(i, self._runs[run]) for i in range(len(self.actors))}
        for i in self._starting:
            self._starting[i] = pending.pop(i)
        for i, ref in pending.items():
            try:
                self.nodes[i] = ray.get(ref)
            except RayActorError:
                self._replace(i)
            except RayTaskError as e:
                raise _unwrap(e) from None

    def _send_setup(self, i: int, run: _SharedSetup) -> Any:
        return self.actors[i].setup.remote(run.setup, run.federation, run.start)

    def _replace(self, i: int) -> None:
        """Start a dead actor's successor; its runs are set up before its first call."""
        ray.kill(self.actors[i], no_restart=True)
        self.restarts += 1
        self.actors[i] = self._start(i)
        self.on_restart(actor=i, restarts=self.restarts)
        self.nodes.pop(i, None)
        self._send_setups(i)

    def _send_setups(self, i: int) -> None:
        """Set up all runs in a new actor, which takes calls once that has ended."""
        for run in self._runs.values():  # calls of one actor run in order, so no need to wait
            self._starting[i] = self._send_setup(i, run)

    def _check_starting(self) -> None:
        """Let successors whose setup has ended take calls from now on."""
        for i, ref in list(self._starting.items()):
            if ray.wait([ref], timeout=0)[0]:
                self._finish_start(i)

    def _finish_start(self, i: int) -> None:
        """Let a successor whose setup has ended take calls from now on, or replace it once more."""
        try:
            self.nodes[i] = ray.get(self._starting.pop(i))
            self._failed_starts[i] = 0
        except RayActorError as death:
            self._failed_starts[i] += 1
            self._apply_policy(ActorDeath(self._failed_starts[i], "before it was ready", str(death)))
            self._replace(i)
        except RayTaskError as e:
            raise _unwrap(e) from None
        if self._late and not self._starting:
            self._late = False
            self.on_started()

    def _apply_policy(self, death: ActorDeath) -> None:
        """Raise RunFailed where the policy says that this death ends the run."""
        decision = self.policy.decide(death)
        if isinstance(decision, Raise):
            raise RunFailed(decision.reason) from None

    def _replace_dead(self) -> None:
        """Replace actors that die while nobody asks them; checked now and then."""
        if time.monotonic() < self._pinged + CHECK_S:
            return
        self._pinged = time.monotonic()
        for i, (actor, ref) in enumerate(self._pings):
            if i not in self._starting and actor is self.actors[i] and ray.wait([ref], timeout=0)[0]:
                try:
                    ray.get(ref)
                except RayActorError:
                    self._replace(i)
        self._check_starting()
        self._pings = [(actor, actor.ping.remote()) for actor in self.actors]

    def _ready(self) -> list[int]:
        """Return the actors that take calls."""
        return [i for i in range(len(self.actors)) if i not in self._starting]

    def locate_actors(self) -> list[ActorInfo]:
        """Return where the actors that take calls are."""
        return ray.get([self.actors[i].locate.remote() for i in self._ready()])

    def close(self) -> None:
        """End the actors, so that the placement group can be removed."""
        for a in self.actors:
            ray.kill(a, no_restart=True)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def adopt(self, run: str, resident: Resident) -> None:
        """Adopt a run as `rayfed.engine.pool.Pool.adopt` says; not where actors have GPUs, which this process does not see."""
        if self.adopts:
            process.keep_freed_memory()
            self.local_worker.adopt(run, resident)
            self._adopted.add(run)

    def begin_here(self, run: str, resident: Resident, client_s: float) -> None:
        """Begin a run in this process as `rayfed.engine.pool.Pool.begin_here` says, where the actors start late."""
        if self._late:
            process.keep_freed_memory()
            self.local_worker.adopt(run, resident)
            self._alone[run] = client_s
            if resident.config.per_round() * client_s > ALONE_S:
                self.start()  # while executors are timed here

    def put(self, value: Tree) -> Any:
        """Return a handle. What is small travels with each call: putting it into the store and getting it out takes longer."""
        return value if tree.nbytes(value) <= INLINE_BYTES else ray.put(value)

    def get(self, handle: Any) -> Tree:
        """Return a handle's value."""
        return ray.get(handle) if isinstance(handle, ray.ObjectRef) else handle

    def execute(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """Execute jobs as `rayfed.engine.pool.Pool.execute` says. Raises RunFailed where a job lost more actors than the policy allows.

        The actors that live do the work of those that wait for a place.
        """
        if self._may_execute_here(jobs):
            self._replace_dead()
            for number, job in enumerate(jobs):
                yield number, self._execute_here(job)
            return
        self.start()
        queue = JobQueue.distribute(len(jobs), [self.nodes.get(i, "") for i in range(len(self.actors))])
        on_nodes = self._on_nodes
        calls: dict[Any, _CallInFlight] = {}  # reference of the result -> its call
        load = [0] * len(self.actors)
        deaths = [0] * len(jobs)
        while queue or calls:
            while queue and (able := [i for i in self._ready() if load[i] < IN_FLIGHT]):
                actor = min(able, key=load.__getitem__)
                number = queue.take(self.nodes.get(actor))
                job = jobs[number]
                call = self._named_call(actor, label(job.request))
                result, large, states, folds = call.remote(Job(job.run, job.request), on_nodes, *job.handles)
                calls[result] = _CallInFlight(number, actor, large, states, folds)
                load[actor] += 1
            self.queued = len(queue) + len(calls)
            (done,), _ = ray.wait([*self._starting.values(), *calls], num_returns=1)
            if done not in calls:
                self._finish_start(next(i for i, ref in self._starting.items() if ref == done))
                continue
            ended = calls[done]
            try:
                result = ray.get(done)
            except RayActorError as death:
                for ref in [ref for ref, c in calls.items() if c.actor == ended.actor]:
                    lost = calls.pop(ref).job
                    deaths[lost] += 1
                    queue.put_back(lost)
                    self._apply_policy(ActorDeath(deaths[lost], "over the same call", str(death)))
                load[ended.actor] = 0
                self._replace(ended.actor)
                continue
            except RayTaskError as e:
                raise _unwrap(e) from None
            del calls[done]
            load[ended.actor] -= 1
            self.queued = len(queue) + len(calls)
            yield ended.job, self._outcome(result, ended, on_nodes)

    def _may_execute_here(self, jobs: Sequence[Job]) -> bool:
        """Return whether this process executes jobs of one run: a single one, or before there are actors what is little work."""
        if not jobs or jobs[0].run not in self.local_worker.runs or self._on_nodes:
            return False
        if not self._late or self._ready() or jobs[0].run not in self._alone:
            return len(jobs) == 1 and jobs[0].run in self._adopted
        clients = sum(len(j.request.clients) for j in jobs if isinstance(j.request, VisitCall))
        return clients * self._alone[jobs[0].run] <= ALONE_S

    def _execute_here(self, job: Job) -> Outcome:
        """Execute a job in this process."""
        result, large, states = self.local_worker.do(job, [self.get(h) for h in job.handles])
        return Outcome(
            result, self.put(large) if large else None, self.put(states) if states else None, in_process=True
        )

    def _outcome(self, result: Any, call: _CallInFlight, on_nodes: bool) -> Outcome:
        if not isinstance(result, CallResult):
            return Outcome(result)
        folds = None
        if on_nodes:
            folds = LocatedFolds(call.folds, self.nodes.get(call.actor, f"of actor {call.actor}"))
        return Outcome(
            result,
            call.large if result.large else None,
            call.states if result.has_states else None,
            folded=folds,
        )

    def _named_call(self, i: int, name: str) -> Any:
        """Return an actor's `execute_job` under the name that Ray's pages show; made once, which takes as long as a call."""
        actor = self.actors[i]
        known = self._named.get((i, name))
        if known is None or known[0] is not actor:
            known = self._named[i, name] = (actor, actor.execute_job.options(num_returns=4, name=name))
        return known[1]

    # -- folds on several nodes ----------------------------------------------------------------------------------------

    def merging(self) -> Merging:
        """Begin to merge as `rayfed.engine.pool.Pool.merging` says; on several nodes, folds are merged on each before they travel."""
        self._check_starting()
        self._on_nodes = len(set(self.nodes.values())) > 1
        return NodeMerging(self._merge_on) if self._on_nodes else Merging()

    def _merge_on(self, node: str, left: Any, right: Any) -> Any:
        """Let an actor of the node merge two folds that are there; return the reference of the result."""
        there = [i for i, home in self.nodes.items() if home == node] or self._ready() or list(range(len(self.actors)))
        self._merges += 1
        return self.actors[there[self._merges % len(there)]].merge.remote(left, right)


def _unwrap(e: RayTaskError) -> BaseException:
    """Return the error that was raised in the actor, where Ray could carry it."""
    cause = getattr(e, "cause", None)
    return cause if isinstance(cause, BaseException) else RunFailed(str(e))
