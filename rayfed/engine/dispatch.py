"""How an ask is carried out: clients are cut into cohorts, a call goes out for each, and what they give comes together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed import clock, privacy, tree
from rayfed import fold as folding
from rayfed.adapters import ranks
from rayfed.engine import cohorts
from rayfed.engine.attackers import Attackers
from rayfed.engine.byte_meter import ByteMeter
from rayfed.engine.client_states import ClientStates
from rayfed.engine.engine_state import EngineState
from rayfed.engine.evaluation import Evaluation
from rayfed.engine.failures import ClientFailed, Failure, FailurePolicy, Raise
from rayfed.engine.messages import CallResult, Job, Request, Value, VisitCall
from rayfed.engine.replies import CallParts, UnfoldedParts
from rayfed.engine.ruling import Ruling
from rayfed.errors import FailsAgain, RunFailed
from rayfed.fed import FoldedParts, Replies, Reply
from rayfed.fold import Fold
from rayfed.storage.timeline import Visits
from rayfed.transform.chain import Chain
from rayfed.wire import ANY

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.engine.pool import Merging, Outcome, Pool
    from rayfed.method import Method
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree
    from rayfed.visits import Arguments


NAMED = 8  # clients at work that are named
TRANSFORMS, RULE = "transforms", "aggregate"  # their names in the engine's state


class Plan(NamedTuple):
    """An ask's folds: all of them, those that calls do, those that a rule of aggregation has in their place; the parts that calls keep;
    what transforms tell the clients."""

    folds: tuple[Fold, ...]
    called: tuple[Fold, ...]
    ruled: tuple[Fold, ...]
    keep: tuple[str, ...]
    transforms: Any


class Dispatch:
    """The engine behind `Fed.ask` (see `rayfed.fed.Dispatcher`), for one run on one pool.

    states: of the clients; engine: what the engine itself carries; meter, visits, dropped, local_scores, seconds: of this round, the
    last two by client; simulated: its seconds on the clients' devices; worked: its visits on them; watch: is called with the number of
    visits so far whenever a call has ended; note: with each sentence that a worker notes about its process.
    """

    def __init__(self, config: Config, federation: Federation, method: Method, task: Task, pool: Pool, run: str):
        """run: the id under which the run is resident in the pool."""
        self.config, self.federation, self.method, self.task = config, federation, method, task
        self.pool, self.run_id = pool, run
        self.states, self.engine = ClientStates(pool, family=task.family), EngineState()
        self.chain = Chain.of(config, method, task)
        self.keeps_states = bool(method.wire.keep) or (self.chain is not None and self.chain.keeps)
        self.policy = FailurePolicy.of(config.failures)
        self.cohort_size = cohorts.cohort_size(config, task)
        ranked = ranks.kept(config, method.wire) or ranks.unequal(config)
        self.meter = ByteMeter(
            method, (lambda client: int(task.ranks[client])) if ranked else None, splits=config.task.split is not None
        )
        self.ruling, self.attackers = Ruling.of(config, method, task), Attackers.of(config, method, task)
        self._devices = clock.devices(config, federation.clients)
        self.watch: Callable[[int], None] = lambda visits: None
        self.note: Callable[[str], None] = lambda sentence: None
        self.active = time.monotonic()  # when an ask or a job began or ended last
        self._left: dict[int, Job] = {}  # jobs of the present ask that have not ended
        self.begin(0, score_local=False)

    def begin(self, round: int, score_local: bool) -> None:
        """Begin a round: asks and counts start at 0 again, and shared parts are put into the pool again."""
        self.round, self.score_local = round, score_local
        self._asks = 0
        self._handles: dict[
            int, tuple[Tree, Any]
        ] = {}  # id of a shared value -> it, so that it stays alive, and its handle
        self.meter.reset()
        if self.ruling:
            self.ruling.begin(round)
        self.visits = self.dropped = 0
        self.local_scores: dict[int, dict[str, float]] = {}
        self.seconds: dict[int, float] = {}
        self.simulated = 0.0
        self.worked: list[Visits] = []

    def commit(self) -> None:
        """Make what the round has kept of clients, and for the engine itself, the state."""
        self.states.commit()
        self.engine.commit()

    def rollback(self) -> None:
        """Forget what the round has kept."""
        self.states.rollback()
        self.engine.rollback()

    def load(self, snapshot: Path, segments: Path) -> None:
        """Load what a snapshot holds of clients and of the engine itself."""
        self.states.load(snapshot, segments)
        self.engine.load(snapshot)

    def logged(self) -> dict[str, float]:
        """Return what the round's row says of transforms and of privacy."""
        row = self.chain.row(self._transform_state(), spent=self.score_local) if self.chain is not None else {}
        private = self.config.local.privacy
        if private is not None and private.accountant != "none" and self.score_local:
            epochs = self.round * (self.config.local.epochs or 1)  # of a client that was asked in every round
            row["privacy/epsilon_examples"] = privacy.epsilon(
                "exact", 1.0, private.noise_multiplier, epochs, private.delta
            )
        return row

    def _transform_state(self) -> Tree:
        assert self.chain is not None
        return self.engine.get(TRANSFORMS) or self.chain.state_init()

    def ask(
        self,
        visit: str | Evaluation,
        clients: Sequence[int],
        *,
        arguments: Arguments = (),
        shared: Tree,
        mine: Mapping[int, Tree],
        folds: tuple[Fold, ...] = (),
        keep: tuple[str, ...] = (),
        metered: bool = False,
        rows: np.ndarray | None = None,
    ) -> Replies:
        """Have a visit of the method or an evaluation executed by clients, in cohorts; arguments as in `Fed.ask`.

        clients, rows: of `Evaluation.ROWS`, numbers of pieces from 0 and the rows of the data arrays in each, (pieces, b). Errors:
        ClientFailed where a failure ends the run, and what the pool raises.
        """
        self._asks += 1
        number = (self.round << 20) + self._asks
        plan = self._plan(visit, clients, folds, keep, metered)
        new = {part: self.meter.newcomers(value, clients) for part, value in shared.items()} if metered else {}
        sent: dict[str, Any] = {"arguments": arguments, "shared": shared, "mine": mine}
        crafted = self._collude(visit, clients, sent) if self.attackers and metered else None
        jobs = self._jobs(
            visit,
            clients,
            **sent,
            folds=plan.called,
            keep=plan.keep,
            score_local=self.score_local and metered,
            rows=rows,
            crafted=crafted,
            transforms=plan.transforms,
        )
        up, down = self.meter.up, self.meter.down
        replies, unfolded = self._execute_calls(visit, jobs, plan.called, metered)
        if plan.ruled:
            self._rule(plan.ruled, replies, unfolded, mine)
            if (
                metered
                and self.ruling
                and self.ruling.rule.weighted
                and _weighs(plan.ruled)
                and not _weighs(plan.called)
            ):
                self.meter.up += 8 * len(replies)  # n_i, which a call with a fold by it has counted
        elif self.ruling and metered and isinstance(visit, str):
            self.ruling.refuse_unruled(visit, plan.called, unfolded)
        if self.chain is not None and metered:
            state = self.chain.finish(plan.folds, replies.folded, self._transform_state(), len(replies), number)
            self.engine.put(TRANSFORMS, state)
        if metered:
            self.meter.count_down(shared, new, [job.request for job in jobs if isinstance(job.request, VisitCall)])
            if self._devices is not None and len(replies):
                self._pass_time(replies, self.meter.up - up, (self.meter.down - down) / len(clients))
        return replies

    def _plan(
        self,
        visit: str | Evaluation,
        clients: Sequence[int],
        folds: tuple[Fold, ...],
        keep: tuple[str, ...],
        metered: bool,
    ) -> Plan:
        """Return the folds of an ask as transforms and a rule of aggregation have them. What is not metered does not travel, and no
        transform acts on it."""
        asked = None
        if self.chain is not None and metered:
            folds = self.chain.rule(str(visit), folds, keep, self._transform_state())
            asked = self.chain.asked(self._transform_state(), clients)
        ruled = self.ruling.takes(folds) if self.ruling else ()
        if not ruled:
            return Plan(folds, folds, (), keep, asked)
        read = {n for f in ruled for n in (f.weight, f.by) if n in self.method.wire.up}
        called = tuple(f for f in folds if f not in ruled)
        return Plan(folds, called, ruled, (*keep, *sorted(read - set(keep))), asked)

    def _pass_time(self, replies: Replies, up: int, down: float) -> None:
        """Let the ask take as long as its slowest visit on the clients' devices. up: bytes of all replies; down: of one client."""
        assert self._devices is not None
        took = self._devices.seconds(replies.ids, [r.steps for r in replies], up / len(replies), down)
        self.worked.append((replies.ids, np.full(len(took), self.simulated), self.simulated + took))
        self.simulated += float(took.max())

    def _jobs(
        self,
        visit: str | Evaluation,
        clients: Sequence[int],
        *,
        shared: Tree,
        mine: Mapping[int, Tree],
        rows: np.ndarray | None = None,
        crafted: Any = None,
        **more: Any,
    ) -> list[Job]:
        """Return a job for each cohort; crafted: the handle of what colluding attackers send; more: of the calls."""
        handles = tuple(self._shared_handle(value) for value in shared.values())
        jobs = []
        for cohort, family in self._cut(visit, clients):
            of_clients = rows is None and self.keeps_states
            blocks, places = self.states.lookup(cohort) if of_clients else ((), ())
            call = VisitCall(
                visit=visit,
                clients=cohort,
                dispatch=(self.round << 20) + self._asks,
                round=self.round,
                rounds=self.config.rounds,
                shared=tuple(shared),
                mine=tree.to_numpy(tree.stack([mine[c] for c in cohort])) if mine else {},
                states=places,
                rows=None if rows is None else rows[list(cohort)],
                crafted=crafted is not None,
                family=family,
                **more,
            )
            jobs.append(Job(self.run_id, call, (*handles, *blocks, *((crafted,) if crafted is not None else ()))))
        return jobs

    def _cut(self, visit: str | Evaluation, clients: Sequence[int]) -> list[tuple[cohorts.Cohort, int]]:
        """Return (cohort, number of its family)."""
        if visit is Evaluation.ROWS:
            pieces = cohorts.cut_in_order(clients, math.ceil(len(clients) / cohorts.SCORING_CALLS))
            return [(piece, 0) for piece in pieces]
        return cohorts.cut_by_family(clients, self.federation, self.cohort_size, self.task)

    def _collude(self, visit: str | Evaluation, clients: Sequence[int], sent: Mapping[str, Any]) -> Any:
        """Return the handle of what colluding attackers send in the place of each update; None where nobody colludes.

        They are asked first, for what they would send as honest clients, which counts nowhere and changes no state.
        """
        assert self.attackers is not None
        theirs = self.attackers.colluders(clients)
        if not theirs:
            return None
        jobs, calls = self._jobs(visit, theirs, **sent, rehearsal=True), {}
        for number, outcome in self._execute_jobs(jobs):
            result = outcome.result
            assert isinstance(result, CallResult)
            if result.clients:
                calls[number] = CallParts(result.clients, result.small, result.large, outcome.large)
        replies = self._unfolded([calls[i] for i in sorted(calls)])
        crafted = {}
        for part in sorted(self.attackers.parts & {n for c in calls.values() for n in (*c.small, *c.names)}):
            everyone = [np.arange(sum(len(c.clients) for c in calls.values()))]
            (crafted[part],) = replies.combine(part, self._zero(part), everyone, self.attackers.colluding, len(clients))
        return self._put(crafted) if crafted else None

    def _rule(self, folds: tuple[Fold, ...], got: Replies, unfolded: UnfoldedParts, mine: Mapping[int, Tree]) -> None:
        """Put what the rule of aggregation makes of these folds into the replies."""
        assert self.ruling is not None
        self.ruling.sums = dict(self.engine.get(RULE))  # as the last round that was committed left them
        self.ruling.apply(folds, got, unfolded, mine, self._zero, self._put_zero)
        if self.ruling.rule.memory:
            self.engine.put(RULE, self.ruling.sums)

    def _shared_handle(self, value: Tree) -> Any:
        """Put a shared part into the pool, once a round however many asks carry it."""
        if id(value) not in self._handles:
            self._handles[id(value)] = value, self._put(value)
        return self._handles[id(value)][1]

    def _put(self, value: Tree) -> Any:
        """Put a tree of the server into the pool; returns its handle."""
        self.meter.moved_down += tree.nbytes(value)
        return self.pool.put(tree.to_numpy(value))

    # -- what comes back -----------------------------------------------------------------------------------------------

    def _execute_calls(
        self, visit: str | Evaluation, jobs: list[Job], folds: tuple[Fold, ...], metered: bool
    ) -> tuple[Replies, UnfoldedParts]:
        """Execute the calls and bring their replies, folds and failures into one."""
        merging = self.pool.merging()
        parts: dict[int, CallParts] = {}
        replies: list[Reply] = []
        failures: dict[int, str] = {}
        for number, outcome in self._execute_jobs(jobs):
            result = outcome.result
            assert isinstance(result, CallResult)
            self._add_failures(visit, result.failures, failures)
            if folds:
                merging.add(number, outcome)
            through = [up + down for up, down in result.crossed] or [0] * len(result.clients)
            rows = zip(result.clients, result.examples, result.steps, result.ranks, through, strict=True)
            replies += [Reply(*row) for row in rows]
            if result.clients:
                parts[number] = CallParts(result.clients, result.small, result.large, outcome.large)
            if outcome.states is not None:
                self.states.write(result.clients, outcome.states)
            self._count_result(result, outcome, metered)
        if not _of_no_client(visit):
            self.dropped += len(failures)
        folded, weight = self._fold_calls(jobs, folds, merging, [reply.client for reply in replies])
        unfolded = self._unfolded([parts[i] for i in sorted(parts)])
        return Replies(replies, unfolded, folded, weight, failures), unfolded

    def _unfolded(self, calls: list[CallParts]) -> UnfoldedParts:
        return UnfoldedParts(calls, self.pool, self._reduce, self._put, self.task.counters)

    def _add_failures(self, visit: str | Evaluation, found: Mapping[int, Failure], failures: dict[int, str]) -> None:
        """Add a call's failures, by client; ClientFailed where the policy says that one ends the run."""
        for client, failure in found.items():
            failures[client] = failure.reason
            if not _of_no_client(visit) and isinstance(self.policy.decide(failure), Raise):
                raise ClientFailed(client, self.round, str(visit), failure)

    def _count_result(self, result: CallResult, outcome: Outcome, metered: bool) -> None:
        """Add a call to what the round has counted so far."""
        self.meter.note_ranks(result)
        if metered:
            self.meter.up += result.bytes_up
            self.meter.cross(result.crossed)
            self.visits += len(result.clients)
            self.local_scores.update(result.local_scores)
            self.seconds.update(dict.fromkeys(result.clients, result.seconds / max(1, len(result.clients))))
        if not outcome.in_process:
            self.meter.moved_up += tree.nbytes(result.small) + folding.nbytes(result.folded or {})
        self.watch(self.visits)

    def _fold_calls(
        self, jobs: list[Job], folds: tuple[Fold, ...], merging: Merging, replied: Sequence[int]
    ) -> tuple[FoldedParts, dict[str, Any]]:
        """Finish the folds: (part -> what its fold gave, part -> its weight). Calls whose folds are lost are executed again."""
        while again := merging.lost():
            for i, outcome in self._execute_jobs([jobs[number] for number in again]):
                merging.add(again[i], outcome)
        merged = merging.result()
        if self.chain is not None:
            asked = [job.request for job in jobs if isinstance(job.request, VisitCall)]
            everyone = [c for call in asked for c in call.clients]
            merged = self.chain.open(folds, merged, replied, everyone, asked[0].dispatch if asked else 0)
        self.meter.moved_up += merging.moved
        folded, weight = FoldedParts(), {}
        for fold in folds:
            partials = merged.get(fold.part) or ({} if fold.by else None)
            if partials is not None:
                folded[fold.part], weight[fold.part] = folding.finish(fold, partials)
                continue
            weight[fold.part] = 0.0
            self._put_zero(fold.part, folded)
        return folded, weight

    def _put_zero(self, part: str, folded: FoldedParts) -> None:
        try:
            folded[part] = self._zero(part)
        except RunFailed as error:
            folded.without_zero[part] = error

    def _zero(self, part: str) -> Tree | Tensor:
        """Return what a fold over no reply gives: zeros of the declared shape. RunFailed where it has none."""
        shape = self.method.wire.up[part].shape if part in self.method.wire.up else ANY
        try:
            return shape.zeros(self.task)
        except RunFailed as unknown:
            message = f"nobody replied and part {part!r}, declared {str(shape)!r}, has no zero to stand for it"
            raise FailsAgain(message) from unknown

    def _reduce(self, jobs: Sequence[tuple[Request, tuple[Any, ...]]]) -> list[Any]:
        """Execute requests on parts of replies; returns their values in the same order."""
        values: list[Any] = [None] * len(jobs)
        for i, outcome in self._execute_jobs([Job(self.run_id, request, handles) for request, handles in jobs]):
            assert isinstance(outcome.result, Value)
            values[i] = outcome.result.value
            self.meter.moved_up += 0 if outcome.in_process else tree.nbytes(values[i])
        return values

    def _execute_jobs(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """Yield (number, outcome) of jobs as they end, and pass on what workers note about their processes."""
        self._left, self.active = dict(enumerate(jobs)), time.monotonic()
        for number, outcome in self.pool.execute(jobs):
            self.active = time.monotonic()
            self._left.pop(number, None)
            for sentence in outcome.result.notes:
                self.note(sentence)
            yield number, outcome

    def at_work(self) -> str:
        """Return who has not replied yet, in words; "" where nobody is asked. May be called from another thread."""
        calls = [job.request for job in list(self._left.values()) if isinstance(job.request, VisitCall)]
        if not calls:
            return ""
        ids = [c for call in calls for c in call.clients]
        named = ", ".join(map(str, ids[:NAMED])) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")
        if calls[0].visit is Evaluation.ROWS:
            return f"pieces of the scored rows at work: {named}"
        return f"clients at work: {named}; visit {str(calls[0].visit)!r}"


def _weighs(folds: Sequence[Fold]) -> bool:
    """Return whether one of the folds is by n_i."""
    return any(f.weight == "examples" for f in folds)


def _of_no_client(visit: str | Evaluation) -> bool:
    """Return whether a visit scores rows that are no client's; where it fails, the evaluation says what is missing."""
    return visit in (Evaluation.ROWS, Evaluation.ENSEMBLE)
