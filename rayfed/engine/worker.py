"""What runs inside an actor: the runs that are resident there, and the execution of one job after another.

A `Job` is small: names, ids, settings and references. Payloads reach `Worker.do` as values that the pool resolved.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import cut, execute, schedules, stragglers, tree
from rayfed.adapters import ranks
from rayfed.config.own_errors import contained
from rayfed.engine.evaluation import LOCAL_SCORES, Evaluation
from rayfed.engine.failures import NOT_FINITE, Failure, Retry, TooLarge, VectorizeError
from rayfed.engine.messages import (
    Answer,
    CallResult,
    CombineCall,
    DotCall,
    GramCall,
    Job,
    LinearCall,
    PickCall,
    TimingCall,
    Value,
    VisitCall,
)
from rayfed.engine.resident import Resident, data_key
from rayfed.engine.time_limit import TimedOut, time_limit
from rayfed.execute import compiled
from rayfed.execute.tuning import autotune, kernels, replay
from rayfed.fold import Folded, largest, partial
from rayfed.fold import to_numpy as fold_to_numpy
from rayfed.lazy import torch
from rayfed.storage.cache import cache_folder
from rayfed.transform.chain import SUMS
from rayfed.tree import Tree
from rayfed.wire import check_parts

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.execute.batches import Cohort
    from rayfed.partition import Federation

SMALL = 4096  # elements per client: up to here an unfolded part travels to the server with the reply

Executed = tuple[Tree, Tree, Any]  # parts sent, new client states, steps; a row for each client
Piece = tuple[list[int], Tree, Tree, Any]  # the same behind its clients' positions in the cohort


class Worker:
    """Executes jobs of any run that was set up; holds no client's state between calls."""

    RUNS = 4  # runs kept resident: a study's arms alternate, a sweep's trials move on

    def __init__(self, device: str = "cpu", keep: int = RUNS):
        self.device, self.keep = device, keep
        self.runs: OrderedDict[str, Resident] = OrderedDict()
        self._handlers: dict[type, Callable[[Resident, Any, Sequence[Any]], Answer]] = {
            VisitCall: self._visit,
            LinearCall: self._linear,
            PickCall: self._pick,
            GramCall: self._gram,
            DotCall: self._dot,
            CombineCall: self._combine,
            TimingCall: self._time,
        }

    def setup(self, run: str, config: Config, federation: Federation, start: Any = None) -> None:
        """Make a run resident; `start`: see `rayfed.models.start.start_from`."""
        key = data_key(config)
        like = next((r for r in self.runs.values() if r.data_key == key), None)
        with contained():
            self.adopt(run, Resident(config, federation, start, self.device, like))

    def adopt(self, run: str, resident: Resident) -> None:
        """Adopt a run that was made resident elsewhere in this process."""
        self.runs[run] = resident
        while len(self.runs) > self.keep:
            self.runs.popitem(last=False)

    def do(self, job: Job, values: Sequence[Any]) -> Answer:
        """Do a job whose handles were resolved to `values`. What its answer holds are NumPy arrays."""
        res = self.runs[job.run]
        resources = res.config.resources
        notes: list[str] = []
        with (
            kernels.using(kernels.from_resources(resources, self.device)),
            kernels.full_precision(self.device),
            kernels.deterministic(resources.deterministic),
            replay.using(resources.replay, notes),
            compiled.using(lambda: cache_folder() / "compiled"),
            contained(),
        ):
            answer = self._handlers[type(job.request)](res, job.request, values)
        return answer._replace(result=replace(answer.result, notes=tuple(notes))) if notes else answer

    def _visit(self, res: Resident, call: VisitCall, values: Sequence[Any]) -> Answer:
        began = time.perf_counter()
        while (answer := CohortVisit(res, call, values, began).execute()) is None:
            res.checks_each_reply = True  # somebody's reply has a NaN or an infinity: find out whose
        return answer

    def _time(self, res: Resident, call: TimingCall, values: Sequence[Any]) -> Answer:
        return Answer(Value(autotune.time_families(res, call.cohort)))

    # -- parts of replies, where they are ------------------------------------------------------------------------------

    def _linear(self, res: Resident, call: LinearCall, values: Sequence[Any]) -> Answer:
        part = tree.from_numpy(values[0][call.part], self.device)
        part = {n: part[n] for n in call.names} if call.names else part
        weights = torch.as_tensor(call.weights, device=self.device)
        made, counters = tree.combine(weights, part), {n: part[n] for n in res.task.counters if n in part}
        return Answer(Value(tree.to_numpy({**made, **largest(weights, counters)} if counters else made)))

    def _pick(self, res: Resident, call: PickCall, values: Sequence[Any]) -> Answer:
        part = values[0][call.part]
        return Answer(Value({n: part[n] for n in call.names}))

    def _gram(self, res: Resident, call: GramCall, values: Sequence[Any]) -> Answer:
        a, b = (tree.without(tree.from_numpy(v[call.part], self.device), res.task.buffers) for v in values)
        each = tree.map(lambda x, y: x.reshape(x.shape[0], -1) @ y.reshape(y.shape[0], -1).T, a, b)
        return Answer(Value(tree.to_numpy(each if call.apart else sum(tree.values(each)))))

    def _combine(self, res: Resident, call: CombineCall, values: Sequence[Any]) -> Answer:
        """Combine some coordinates of all replies; values: the part (c, ...) of each call."""
        parts = [dict(tree.leaves(tree.from_numpy(v[call.part], self.device))) for v in values]
        pieces, first = [], 0
        for path in call.paths:
            size = parts[0][path][0].numel()
            low, high = max(call.begin - first, 0), min(call.end - first, size)
            if low < high:
                pieces.append(torch.cat([p[path].reshape(len(p[path]), -1)[:, low:high] for p in parts]))
            first += size
        rows, picks = torch.cat(pieces, 1), [torch.as_tensor(p, device=self.device) for p in call.picks]
        made = torch.stack([res.combine(rows[p], call.attack, call.asked) for p in picks])
        return Answer(Value(tree.to_numpy(made)))

    def _dot(self, res: Resident, call: DotCall, values: Sequence[Any]) -> Answer:
        """Multiply; values: the part (c, ...) and the trees (K, ...), whose entries may be some of the part's."""
        part, trees = (tree.from_numpy(v, self.device) for v in (values[0][call.part], values[1]))
        entries, products = dict(tree.leaves(part)), []
        for path, y in tree.leaves(tree.without(trees, res.task.buffers)):
            # Row by row and in fresh memory: a client's bits depend neither on its cohort nor on where its row was.
            wide = y.reshape(y.shape[0], -1).to(torch.float64, copy=True)
            rows = (x.reshape(-1).to(torch.float64, copy=True) for x in entries[path])
            products.append(torch.stack([wide @ x for x in rows]))
        return Answer(Value(tree.to_numpy(torch.stack(products).sum(0))))


class CohortVisit:
    """One call under way: a visit of all clients of a cohort is executed piece by piece, checked and folded."""

    def __init__(self, resident: Resident, call: VisitCall, values: Sequence[Any], began: float):
        """values: the shared parts in the call's order, then the blocks that hold client states."""
        self.resident, self.call, self.began, self.device = resident, call, began, resident.device
        self.task = resident.task.of_family(call.family)
        self.visit = resident.visit(call.visit, call.score_local, call.arguments, call.family)
        self.executor = execute.choose_executor(resident.config.resources.executor, self.visit, bool(call.arguments))
        self.of_clients = call.rows is None
        self.keeps_rank = resident.keeps_rank and self.of_clients
        if not self.of_clients and self.executor not in ("loop", "debug"):
            self.executor = "loop"  # one model has nothing to vectorise, and a piece's bits then depend on itself alone
        self.cohort = resident.sampler.cohort(
            self.visit,
            call.clients,
            dispatch=call.dispatch,
            round=call.round,
            rounds=call.rounds,
            lr=schedules.round_rate(resident.config.local, call.round, call.rounds),
            given=call.rows,
        )
        self.mine = tree.from_numpy(call.mine, self.device)
        if any(p.over.each for p in self.visit.phases):
            self.cohort = self.cohort.told(self.visit, self.mine)
        if resident.config.local.work.kind != "full" and not isinstance(call.visit, Evaluation):
            fed = resident.sampler.fed
            done = np.ones(fed.clients)  # held-out clients take no part, and are late for nothing
            done[: fed.population] = stragglers.shares(resident.config, fed.population, call.round)
            self.cohort = self.cohort.shortened(self.visit, done[list(call.clients)])
        # Payloads are copied out of the store: an in-place write of a method must never reach another client.
        self.shared = {
            n: tree.map(torch.clone, tree.from_numpy(v, self.device)) for n, v in zip(call.shared, values, strict=False)
        }
        self.own, self.chained = self._stack_states(values[len(call.shared) :])
        self.crafted: Tree = tree.from_numpy(values[-1], self.device) if call.crafted else {}
        self.failures: dict[int, Failure] = {}
        self.folded: Folded = {}
        self._kept: list[Tree] = []
        self._states_after: list[Tree] = []
        self._clients: list[int] = []
        self._examples: list[int] = []
        self._steps: list[int] = []
        self._ranks: list[int] = []
        self._local_scores: dict[int, dict[str, float]] = {}
        self._bytes_up = 0
        self._crossed: list[tuple[int, int]] = []
        # What only folds is checked in the fold: a pass over memory fewer for each reply.
        in_fold = call.transforms is None and not resident.checks_each_reply  # transforms would hide what is not finite
        self.checked_in_fold = {f.part for f in call.folds} - set(call.keep) if in_fold else set()

    def execute(self) -> Answer | None:
        """Execute the call; None where a fold came out with a NaN or an infinity and the replies were not checked by themselves."""
        call, res = self.call, self.resident
        with torch.no_grad():
            for piece in self._execute_pieces():
                self._collect(*piece)
                del piece  # the next reply then takes this one's memory
        if not sums_are_finite(p["total"] for n in self.checked_in_fold for p in self.folded.get(n, {}).values()):
            return None
        kept = _concatenate(self._kept)
        large = {n: p for n, p in kept.items() if sum(x[0].numel() for x in tree.values(p)) > SMALL}
        small = {n: p for n, p in kept.items() if n not in large}
        has_states = not isinstance(call.visit, Evaluation) and res.keeps_states and bool(self._clients)
        before = dict(zip(call.clients, self.own["rank"].tolist(), strict=True)) if self.keeps_rank else {}
        result = CallResult(
            clients=self._clients,
            failures=self.failures,
            examples=self._examples,
            steps=self._steps,
            ranks=self._ranks,
            folded=fold_to_numpy(self.folded),
            small=tree.to_numpy(small),
            large=tuple(large),
            has_states=has_states,
            local_scores=self._local_scores,
            bytes_up=self._bytes_up,
            crossed=self._crossed,
            ranks_before=before,
            seconds=time.perf_counter() - self.began,
        )
        states = tree.to_numpy(_concatenate(self._states_after)) if has_states else None
        return Answer(result, tree.to_numpy(large) if large else None, states)

    def _collect(self, positions: list[int], parts: Tree, after: Tree, steps: Any) -> None:
        """Check a piece's replies against NaN and the wire, count their bytes, and fold or keep their parts."""
        call, res, info = self.call, self.resident, self.cohort.info
        if res.attackers and not call.rehearsal and not isinstance(call.visit, Evaluation):
            ids = [self.cohort.clients[p] for p in positions]
            parts = res.attackers.attack(parts, ids, call.dispatch, self.crafted)
        checked = {n: p for n, p in parts.items() if n not in self.checked_in_fold}
        good = self._finite_positions(positions, checked, after)
        if not good:
            return
        if len(good) < len(positions):
            rows = torch.as_tensor([i for i, p in enumerate(positions) if p in set(good)], device=self.device)
            parts, after, steps = (tree.map(lambda x: x[rows], t) for t in (parts, after, steps))
        at = torch.as_tensor(good, device=self.device)
        ids = [self.cohort.clients[p] for p in good]
        held = after["rank"] if self.keeps_rank else info.rank[at]
        scores = parts.get(LOCAL_SCORES)
        if cut.CROSSED in parts and self.task.cut is not None:
            self._crossed += [self.task.cut.traffic(rows) for rows in parts[cut.CROSSED]]
        parts = {n: p for n, p in parts.items() if n not in (LOCAL_SCORES, cut.CROSSED)}
        if scores is not None:
            self._local_scores.update({c: {n: float(x[i]) for n, x in scores.items()} for i, c in enumerate(ids)})
        if not isinstance(call.visit, Evaluation):
            wire = res.method.wire
            check_parts(wire.up, parts, self.task, call.visit)
            check_parts(wire.keep, after, self.task, f"{call.visit} (client state)", complete=True)
            parts, after = self._transform(parts, after, at, ids, held.tolist() if res.ranked else None)
            self._bytes_up += 8 * len(ids) * any(f.weight == "examples" for f in call.folds)  # n_i
        examples = info.examples[at]
        mine = tree.map(lambda x: x[at], self.mine)
        parts = res.scaled(parts, call.folds) if res.scales else parts
        for fold in call.folds:
            onto = self.folded.get(fold.part)
            self.folded[fold.part] = partial(fold, parts, mine, examples, onto, self.task.counters)
        folded = {f.part for f in call.folds}
        unfolded = {n: p for n, p in parts.items() if n in call.keep or n not in folded}
        self._kept.append(tree.map(lambda x: x.contiguous(), unfolded))
        self._states_after.append(after)
        self._clients += ids
        self._examples += examples.tolist()
        self._ranks += held.tolist()
        self._steps += torch.as_tensor(steps).reshape(-1).tolist()

    def _transform(
        self, parts: Tree, after: Tree, at: Any, ids: list[int], held: list[int] | None
    ) -> tuple[Tree, Tree]:
        """Count the bytes of replies, and let transforms act on them where there are any: (parts as the server decodes them, states)."""
        call, res = self.call, self.resident
        if res.chain is None:
            self._bytes_up += ranks.cost(res.method.cost, parts, held)
            return parts, after
        own = tree.map(lambda x: x[at], self.chained)
        if call.transforms is None:
            self._bytes_up += ranks.cost(res.method.cost, parts, held)
        else:
            folded = {f.part for f in call.folds}
            res.chain.refuse_single(call.visit, [n for n in parts if n in call.keep or n not in folded])
            examples = self.cohort.info.examples[at]
            weights = {f.part: examples if f.weight == "examples" else torch.ones_like(examples) for f in call.folds}
            made = res.chain.encode(parts, own, ids, call.transforms, call.dispatch, weights)
            plain = parts if made.nbytes is None else {n: p for n, p in parts.items() if n not in made.names}
            self._bytes_up += ranks.cost(res.method.cost, plain, held) + (made.nbytes or 0)
            own, parts = made.own, made.parts
            if any(f.part == SUMS for f in call.folds):
                parts = {**parts, SUMS: made.sums}
        return parts, {"method": after, "chain": own} if res.chain.keeps else after

    # -- execution -----------------------------------------------------------------------------------------------------

    def _execute_pieces(self) -> Iterator[Piece]:
        """Execute the visit; what a client's code raises goes to `failures` and the rest goes on."""
        alone = self.task.vectorize
        if isinstance(alone, str) and self.resident.config.resources.vectorised:  # no visit can be vectorised
            raise VectorizeError(alone)
        if self.executor in execute.VECTORISED:
            yield from self._execute_cohort()
            return
        for i in range(len(self.cohort.clients)):
            piece = self._execute_client(self.executor, i)
            if piece:
                yield [i], *piece.pop()  # and this frame holds it no longer

    def _execute_cohort(self) -> Iterator[Piece]:
        """Execute the whole cohort at once; where that fails, without the clients that fail when executed alone."""
        everyone = list(range(len(self.cohort.clients)))
        piece, short = [], False
        try:
            piece = [self._execute(self.executor, self.cohort, self.mine, self.own)]
        except torch.OutOfMemoryError:  # no client's fault
            short = True
        except TimedOut as error:  # at once means for all
            self.failures.update(dict.fromkeys(self.cohort.clients, Failure.of(error, attempts=1)))
            return
        except Exception:  # out of here, for the error holds on to what was made
            pass
        if piece:
            yield everyone, *piece.pop()
            return
        if short:
            raise TooLarge(len(everyone), self.resident.config.resources.gpus_per_actor)
        # Only clients executed alone show whether one of them fails or vmap cannot run the visit; those that pass are tried again.
        rest, passed = self.cohort.without([i for i in everyone if not self._execute_client("loop", i)])
        if not passed:
            return
        at = torch.as_tensor(passed, device=self.device)
        mine, own = (tree.map(lambda x: x[at], t) for t in (self.mine, self.own))
        try:
            piece = [self._execute(self.executor, rest, mine, own)]
        except Exception as error:
            raise VectorizeError(f"{type(error).__name__}: {error}") from error
        yield passed, *piece.pop()

    def _execute_client(self, executor: str, i: int) -> list[Executed]:
        """Execute one client's visit, again where the policy says so; returns a list of one, which is empty where it failed."""
        one = self.cohort.one(i)
        mine, own = (tree.map(lambda x: x[i : i + 1], t) for t in (self.mine, self.own))
        attempts = 0
        while True:
            attempts += 1
            try:
                return [self._execute(executor, one, mine, own)]
            except Exception as error:
                failure = Failure.of(error, attempts)
            if not isinstance(self.resident.policy.decide(failure), Retry):
                self.failures[self.cohort.clients[i]] = failure
                return []

    def _execute(self, executor: str, cohort: Cohort, mine: Tree, own: Tree) -> Executed:
        """Execute the visit of a cohort in one go: what its clients send, keep, and how many steps they took."""
        seconds = self.resident.config.failures.client_timeout_s
        if seconds is not None:
            replay.unusable()  # imports what torch imports at a first step: interrupted, that would stay half made
        with time_limit(seconds and seconds * len(cohort.clients), "failures.client_timeout_s"), contained():
            made = execute.execute_visit(executor, self.visit, cohort, self.shared, mine, own, self.resident.data)
            ((_, parts, after, steps),) = made
        return parts, after, steps

    def _finite_positions(self, positions: list[int], parts: Tree, after: Tree) -> list[int]:
        """Return the positions whose reply and state hold no NaN and no infinity; the others become failures."""
        parts = {n: p for n, p in parts.items() if n != LOCAL_SCORES}
        if sums_are_finite((parts, after)):
            return positions
        reasons: dict[int, str] = {}
        for kind, t in (("part", parts), ("client state", after)):
            for path, x in tree.leaves(t):
                if not x.is_floating_point():
                    continue
                bad = ~torch.isfinite(x.reshape(len(positions), -1)).all(1)
                for i in bad.nonzero()[:, 0].tolist():
                    reasons.setdefault(i, f"{NOT_FINITE} in {kind} {'/'.join(path)}")
        for i, reason in reasons.items():
            self.failures[self.cohort.clients[positions[i]]] = Failure(reason, repeatable=False, diverged=True)
        return [p for i, p in enumerate(positions) if i not in reasons]

    def _stack_states(self, blocks: Sequence[Any]) -> tuple[Tree, Tree]:
        """Stack the clients' states, (k, ...), the method's and the transforms': from the blocks that hold them, or fresh for clients
        without one."""
        res, call = self.resident, self.call
        if not res.keeps_states or not self.of_clients:
            return {}, {}
        rows = []
        for client, place in zip(call.clients, call.states or (None,) * len(call.clients), strict=True):
            if place is None:
                rows.append(tree.map(lambda x: x.to(self.device), res.fresh_state(client)))
            else:
                rows.append(tree.from_numpy(tree.row(blocks[place[0]], place[1]), self.device))
        states = tree.stack(rows)
        return (states["method"], states["chain"]) if res.chain is not None and res.chain.keeps else (states, {})


def _concatenate(pieces: list[Tree]) -> Tree:
    """Append pieces with leaves (c, ...) to each other; {} of none."""
    if not pieces:
        return {}
    return pieces[0] if len(pieces) == 1 else tree.map(lambda *xs: torch.cat(xs), *pieces)


def sums_are_finite(trees: Iterable[Tree]) -> bool:
    """Return False where a tree has a NaN or an infinity (or sums to one); the device is asked once for all leaves."""
    total = 0.0
    for t in trees:
        for x in tree.values(t):
            if x.is_floating_point():
                total = total + x.sum()
    return math.isfinite(total)
