"""The pool on Ray: pull-based, two calls in flight per actor, dead actors replaced and their calls repeated."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.client import ClientActor
from actors.placement import Plan
from rayfed import session
from rayfed.errors import RunFailed
from rayfed.pool import Outcome
from rayfed.tree import Tree
from rayfed.worker import Job

if TYPE_CHECKING:
    from rayfed.partition import Federation

IN_FLIGHT = 2  # calls per actor: one runs while the next one's arguments arrive


class RayPool:
    """Client actors in one placement group. Owned by the server: what calls return belongs to this process."""

    def __init__(self, plan: Plan, group: Any, name: str):
        self.plan, self.group, self.name = plan, group, name
        self.restarts = 0
        self.probed: dict[str, dict[str, Any]] = {}
        self._runs: dict[str, tuple[Any, ...]] = {}
        self._starts: dict[str, Any] = {}
        self.actors = [self._start(i) for i in range(plan.actors)]

    def _start(self, i: int) -> Any:
        number = i if not self.restarts else f"{i}.{self.restarts}"
        options: dict[str, Any] = {
            "name": f"{self.name}/client-{number}",
            "num_cpus": self.plan.cpus,
            "num_gpus": self.plan.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=i),
        }
        return ray.remote(ClientActor).options(**options).remote(i, self.plan.threads, self.plan.gpus)

    def setup(self, run: str, config: Any, federation: Federation, start: Any) -> None:
        known = self._runs.get(run)
        # The data goes to the store once per run, not once per setup or actor.
        data = known[2] if known else ray.put(federation.numpy())
        values = config.to_dict()
        same = json.dumps([values[k] for k in ("task", "init")], sort_keys=True)
        if start is not None and same not in self._starts:  # a base model once per node, whatever the number of runs
            self._starts = {same: ray.put(start)}
        self._runs[run] = (run, values, data, start and self._starts[same], session.used(values))
        while len(self._runs) > 4:
            del self._runs[next(iter(self._runs))]
        pending = {i: self.actors[i].setup.remote(*self._runs[run]) for i in range(len(self.actors))}
        for i, ref in pending.items():
            try:
                ray.get(ref)
            except RayActorError:
                self._replace(i)
            except RayTaskError as e:
                raise _unwrap(e) from None

    def _replace(self, i: int) -> None:
        ray.kill(self.actors[i], no_restart=True)
        self.restarts += 1
        self.actors[i] = self._start(i)
        for args in self._runs.values():
            self.actors[i].setup.remote(*args)  # calls of one actor run in order, so no need to wait

    def about(self) -> list[dict[str, Any]]:
        return ray.get([a.about.remote() for a in self.actors])

    def put(self, value: Tree) -> Any:
        return ray.put(value)

    def get(self, handle: Any) -> Tree:
        return ray.get(handle)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """As `rayfed.pool.Pool.run`. A job whose actors died more than `retries` times ends the run."""
        waiting = deque(range(len(jobs)))
        flying: dict[Any, tuple[int, int, Any, Any]] = {}  # ref of the small answer -> job, actor, other refs
        load = [0] * len(self.actors)
        deaths = [0] * len(jobs)
        while waiting or flying:
            while waiting and min(load) < IN_FLIGHT:
                actor = load.index(min(load))
                number = waiting.popleft()
                job = jobs[number]
                bare = Job(job.run, job.kind, job.args)
                meta, large, own = (
                    self.actors[actor].do.options(num_returns=3, name=_label(job)).remote(bare, *job.handles)
                )
                flying[meta] = (number, actor, large, own)
                load[actor] += 1
            (done,), _ = ray.wait(list(flying), num_returns=1)
            number, actor, large, own = flying[done]
            try:
                meta = ray.get(done)
            except RayActorError as death:
                lost = [ref for ref, f in flying.items() if f[1] == actor]
                for ref in lost:
                    again = flying.pop(ref)[0]
                    deaths[again] += 1
                    waiting.appendleft(again)
                    if deaths[again] > self.retries:
                        raise RunFailed(
                            f"an actor died {deaths[again]} times over the same call (failures.actor_death.retries={self.retries}): {death}"
                        ) from None
                load[actor] = 0
                self._replace(actor)
                continue
            except RayTaskError as e:
                raise _unwrap(e) from None
            del flying[done]
            load[actor] -= 1
            yield number, Outcome(meta, large if meta.get("large") else None, own if meta.get("has_own") else None)

    retries = 3

    def close(self) -> None:
        """End the actors, so that the placement group can be removed."""
        for a in self.actors:
            ray.kill(a, no_restart=True)


def _label(job: Job) -> str:
    return f"{job.kind}:{job.args['call'].visit}" if job.kind == "visit" else job.kind


def _unwrap(e: RayTaskError) -> BaseException:
    """The error that was raised in the actor, where Ray could carry it."""
    cause = getattr(e, "cause", None)
    return cause if isinstance(cause, BaseException) else RunFailed(str(e))
