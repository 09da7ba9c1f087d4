"""The pool on Ray: pull-based, two calls in flight per actor, dead actors replaced and their calls repeated."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.client import ClientActor
from actors.merge import Lies, NodeMerging
from actors.monitor import RayMetrics
from actors.placement import Plan
from rayfed import tree
from rayfed.config import user_code
from rayfed.engine.failures import ActorDeath, FailurePolicy, Raise
from rayfed.engine.messages import CallResult, Job, label
from rayfed.engine.pool import Merging, Outcome
from rayfed.engine.resident import Resident
from rayfed.engine.worker import Worker
from rayfed.errors import RunFailed
from rayfed.execute.tuning import process
from rayfed.partition import split_key
from rayfed.track import prometheus
from rayfed.tree import Tree

if TYPE_CHECKING:
    from rayfed.partition import Federation

SMALL = 64 * 2**10  # bytes; Ray keeps arguments of up to 100 kB out of its store
LOOK_S = 0.5  # between two looks at actors that have nothing to do
IN_FLIGHT = 2  # calls per actor: one runs while the next one's arguments arrive


class RayPool:
    """Client actors in one placement group. Owned by the server: what calls return belongs to this process.

    first: bundle of the first actor; keep: runs that stay resident, the newest ones; imports: modules that actors begin with.
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
    ):
        self.plan, self.group, self.name, self.first, self.keep = plan, group, name, first, keep
        self.imports = tuple(imports)
        self.restarts, self.adopts = 0, not plan.gpus
        self.queued = 0  # calls that wait or are under way
        self.on_restart: Callable[..., None] = lambda **about: None
        prometheus.set_exporter(lambda labels: RayMetrics(labels, self))
        self.timings: dict[str, dict[str, Any]] = {}
        self._runs: dict[str, tuple[tuple[Any, ...], str]] = {}  # run -> arguments of its setup, its split
        self._starts: dict[str, Any] = {}
        self.data: dict[str, Any] = {}  # split -> its data, where whoever asks has put it into the store already
        self._named: dict[tuple[int, str], tuple[Any, Any]] = {}
        self.actors = [self._start(i) for i in range(plan.actors)]
        self.homes: dict[int, str] = {}  # actor -> its node, once it is known
        self.local_worker = Worker(keep=keep)  # of runs whose single jobs are done in this process
        # a dead one's successor, which may have to wait for a node -> its last setup
        self._settling: dict[int, Any] = {}
        self._fallen = [0] * plan.actors  # times that a successor died before it was ready

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

    def setup(self, run: str, config: Any, federation: Federation, start: Any) -> None:
        values = config.to_dict()
        split = split_key(values)
        known = [args for args, of in self._runs.values() if of == split]
        # The data goes to the store once, whatever the number of setups, actors and runs on the same split.
        data = known[0][2] if known else self.data.get(split) or ray.put(federation.numpy())
        same = json.dumps([values[k] for k in ("task", "init")], sort_keys=True)
        if start is not None and same not in self._starts:  # a base model once per node, whatever the number of runs
            self._starts = {same: ray.put(start)}
        self._runs[run] = ((run, values, data, start and self._starts[same], user_code.used(values)), split)
        while len(self._runs) > self.keep:
            del self._runs[next(iter(self._runs))]
        pending = {i: actor.setup.remote(*self._runs[run][0]) for i, actor in enumerate(self.actors)}
        for i in self._settling:
            self._settling[i] = pending.pop(i)
        for i, ref in pending.items():
            try:
                self.homes[i] = ray.get(ref)
            except RayActorError:
                self._replace(i)
            except RayTaskError as e:
                raise _unwrap(e) from None

    def _replace(self, i: int) -> None:
        ray.kill(self.actors[i], no_restart=True)
        self.restarts += 1
        self.actors[i] = self._start(i)
        self.on_restart(actor=i, restarts=self.restarts)
        self.homes.pop(i, None)
        for args, _ in self._runs.values():  # calls of one actor run in order, so no need to wait
            self._settling[i] = self.actors[i].setup.remote(*args)

    def _settle(self) -> None:
        """Actors whose setup has ended take calls from now on."""
        for i, ref in list(self._settling.items()):
            if ray.wait([ref], timeout=0)[0]:
                self._settled(i)

    def _settled(self, i: int) -> None:
        """An actor's setup has ended: it takes calls from now on, or is replaced once more."""
        try:
            self.homes[i] = ray.get(self._settling.pop(i))
            self._fallen[i] = 0
        except RayActorError as death:
            self._fallen[i] += 1
            self._survive(ActorDeath(self._fallen[i], "before it was ready", str(death)))
            self._replace(i)
        except RayTaskError as e:
            raise _unwrap(e) from None

    def _survive(self, death: ActorDeath) -> None:
        """RunFailed where the policy says that this death ends the run."""
        decision = self.policy.decide(death)
        if isinstance(decision, Raise):
            raise RunFailed(decision.reason) from None

    def about(self) -> list[dict[str, Any]]:
        return ray.get([self.actors[i].about.remote() for i in self._able()])

    def adopt(self, run: str, resident: Resident) -> None:
        """As `rayfed.engine.pool.Pool.adopt`; not where actors have GPUs, which this process does not see."""
        if self.adopts:
            process.keep_freed_memory()
            self.local_worker.adopt(run, resident)

    def put(self, value: Tree) -> Any:
        """What is small travels with each call: to put it into the store and to get it out takes longer."""
        return value if tree.nbytes(value) <= SMALL else ray.put(value)

    def get(self, handle: Any) -> Tree:
        return ray.get(handle) if isinstance(handle, ray.ObjectRef) else handle

    def execute(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """As `rayfed.engine.pool.Pool.execute`. RunFailed where a job lost more actors than the policy allows.

        The actors that live do the work of those that wait for a place."""
        if len(jobs) == 1 and jobs[0].run in self.local_worker.runs and not self._apart:
            self._look_after()
            result, large, states = self.local_worker.do(jobs[0], [self.get(h) for h in jobs[0].handles])
            parts, rows = (self.put(x) if x else None for x in (large, states))
            yield 0, Outcome(result, parts, rows, in_process=True)
            return
        waiting = self._shared_out(len(jobs))
        apart = self._apart
        flying: dict[Any, tuple[int, int, Any, Any, Any]] = {}  # ref of the result -> job, actor, other refs
        load = [0] * len(self.actors)
        deaths = [0] * len(jobs)
        while waiting or flying:
            while waiting and (able := [i for i in self._able() if load[i] < IN_FLIGHT]):
                actor = min(able, key=load.__getitem__)
                number = waiting.take(self.homes.get(actor))
                job = jobs[number]
                bare = Job(job.run, job.request)
                ref, large, states, folded = self._do(actor, label(job.request)).remote(bare, apart, *job.handles)
                flying[ref] = (number, actor, large, states, folded)
                load[actor] += 1
            self.queued = len(waiting) + len(flying)
            (done,), _ = ray.wait([*self._settling.values(), *flying], num_returns=1)
            if done not in flying:
                self._settled(next(i for i, ref in self._settling.items() if ref == done))
                continue
            number, actor, large, states, folded = flying[done]
            try:
                result = ray.get(done)
            except RayActorError as death:
                lost = [ref for ref, f in flying.items() if f[1] == actor]
                for ref in lost:
                    again = flying.pop(ref)[0]
                    deaths[again] += 1
                    waiting.again(again)
                    self._survive(ActorDeath(deaths[again], "over the same call", str(death)))
                load[actor] = 0
                self._replace(actor)
                continue
            except RayTaskError as e:
                raise _unwrap(e) from None
            del flying[done]
            load[actor] -= 1
            self.queued = len(waiting) + len(flying)
            if not isinstance(result, CallResult):
                yield number, Outcome(result)
                continue
            yield (
                number,
                Outcome(
                    result,
                    large if result.large else None,
                    states if result.has_states else None,
                    folded=Lies(folded, self.homes.get(actor, f"of actor {actor}")) if apart else None,
                ),
            )

    def _look_after(self) -> None:
        """Actors that die while nobody asks them are replaced all the same."""
        if time.monotonic() < self._seen + LOOK_S:
            return
        self._seen = time.monotonic()
        for i, (actor, ref) in enumerate(self._signs):
            if i not in self._settling and actor is self.actors[i] and ray.wait([ref], timeout=0)[0]:
                try:
                    ray.get(ref)
                except RayActorError:
                    self._replace(i)
        self._settle()
        self._signs = [(actor, actor.alive.remote()) for actor in self.actors]

    _seen = 0.0
    _signs: Sequence[tuple[Any, Any]] = ()
    policy = FailurePolicy()  # of the run whose jobs come next

    def _do(self, i: int, label: str) -> Any:
        """An actor's `do` under the name that Ray's pages show; made once, which takes as long as a call."""
        actor = self.actors[i]
        known = self._named.get((i, label))
        if known is None or known[0] is not actor:
            known = self._named[i, label] = (actor, actor.do.options(num_returns=4, name=label))
        return known[1]

    # -- several nodes -------------------------------------------------------------------------------------------------

    _apart = False  # what the newest merging takes; the same for all calls of an ask, also those that are run again

    def merging(self) -> Merging:
        """On several nodes, folds are merged on each of them before they travel."""
        self._settle()
        self._apart = len(set(self.homes.values())) > 1
        return NodeMerging(self._merge_on) if self._apart else Merging()

    def _able(self) -> list[int]:
        """The actors that take calls."""
        return [i for i in range(len(self.actors)) if i not in self._settling]

    def _shared_out(self, n: int) -> Waiting:
        """n jobs as runs of neighbours for the nodes, by their number of actors, so that neighbours merge where they ran."""
        homes = [self.homes.get(i, "") for i in range(len(self.actors))]
        nodes = sorted(set(homes))
        ends = list(accumulate(homes.count(node) for node in nodes))
        cuts = [0, *(n * end // ends[-1] for end in ends)]
        return Waiting({node: deque(range(a, b)) for node, a, b in zip(nodes, cuts[:-1], cuts[1:], strict=True)})

    def _merge_on(self, node: str, left: Any, right: Any) -> Any:
        """Two folds of a node merged by an actor of it."""
        there = [i for i, home in self.homes.items() if home == node] or self._able() or list(range(len(self.actors)))
        self._turn += 1
        return self.actors[there[self._turn % len(there)]].merge.remote(left, right)

    _turn = 0

    def close(self) -> None:
        """End the actors, so that the placement group can be removed."""
        for a in self.actors:
            ray.kill(a, no_restart=True)


class Waiting:
    """Jobs that no actor has yet: each node's own run of them; a node without any takes from the end of the longest."""

    def __init__(self, queues: dict[str, deque[int]]):
        self.queues = queues

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def take(self, node: str | None) -> int:
        """The next job for an actor of `node`."""
        own = self.queues.get(node or "")
        if own:
            return own.popleft()
        return max(self.queues.values(), key=len).pop()

    def again(self, job: int) -> None:
        """A job whose actor died comes first."""
        next(iter(self.queues.values())).appendleft(job)


def _unwrap(e: RayTaskError) -> BaseException:
    """The error that was raised in the actor, where Ray could carry it."""
    cause = getattr(e, "cause", None)
    return cause if isinstance(cause, BaseException) else RunFailed(str(e))
