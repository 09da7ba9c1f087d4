"""What runs inside an actor: the resident task and data of a run, and the execution of one call.

A `Job` is small: names, ids, settings and references. Payloads reach `Worker.do` as values that the pool resolved.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed import execute, keys, optimizers, tree
from rayfed.adapters import ranks
from rayfed.engine import evaluation as evaluation_module
from rayfed.errors import RunFailed
from rayfed.execute.batches import BatchSampler, Cohort
from rayfed.execute.debug import PieceFailed
from rayfed.execute.tuning import autotune, kernels
from rayfed.fold import Fold, partial
from rayfed.fold import to_numpy as fold_to_numpy
from rayfed.lazy import torch
from rayfed.tree import Tree

if TYPE_CHECKING:
    from rayfed.method import Method
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.visit import Visit

SMALL = 4096  # elements per client: up to here an unfolded part travels to the server with the reply


@dataclass(frozen=True)
class Job:
    """kind: visit | linear | pick | gram | dot | probe; handles: what the pool resolves to values, in this order."""

    run: str
    kind: str
    args: dict[str, Any]
    handles: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Call:
    """One cohort asked for one visit.

    shared: names of the shared parts, their values come first; mine: tree with leaves (k, ...); own: per client
    (number of the value that holds its state, row in it) or None; folds, keep: what happens to parts.
    """

    visit: str
    clients: tuple[int, ...]
    dispatch: int
    round: int
    rounds: int
    shared: tuple[str, ...] = ()
    mine: Tree = field(default_factory=dict)
    own: tuple[tuple[int, int] | None, ...] = ()
    folds: tuple[Fold, ...] = ()
    keep: tuple[str, ...] = ()
    score_local: bool = False


class Failure(NamedTuple):
    """Why a client's reply is missing: a sentence, its traceback, and under `debug` what its code was given."""

    reason: str
    trace: str
    arguments: Tree | None = None


class Resident:
    """One run inside one process: method, task, data. `like`: a resident run whose task and data serve again if they are the same."""

    task: Task
    data: dict[str, Any]
    sampler: BatchSampler

    def __init__(self, config: Any, federation: Federation, start: Any, device: str, like: Resident | None = None):
        from rayfed import task
        from rayfed.methods import get

        self.config, self.device = config, device
        self.same = shared_by(config)
        cls = get(config.method.name)
        self.method: Method = cls(cls.Settings(**config.method.options), config)
        if like is not None and like.same == self.same:
            self.task, self.data, self.sampler = like.task, like.data, like.sampler
        else:
            self.task = task.of(federation.kind)(config, federation, device, start)
            self.data = {n: torch.as_tensor(x) for n, x in tree.from_numpy(federation.arrays).items()}
            self.data = {
                n: x.to(device, self.task.dtype if x.is_floating_point() else x.dtype) for n, x in self.data.items()
            }
            self.sampler = BatchSampler(
                federation,
                seed=config.seed,
                batch_size=config.local.batch_size,
                device=device,
                dtype=self.task.dtype,
                ranks=self.task.ranks,
            )
        self.careful = False  # whether each reply is looked at for NaN by itself: from the first one that has it
        self.own_rank = ranks.kept(config, self.method.wire)
        self.ranked = self.own_rank or ranks.unequal(config)
        self._visits: dict[tuple[str, bool], Visit] = {}

    def visit(self, name: str, score_local: bool) -> Visit:
        if (name, score_local) not in self._visits:
            if name.startswith("@"):
                made = evaluation_module.build(name, self.method, self.task, len(self.sampler.pieces))
            else:
                made = getattr(self.method, name)(self.task)
                if score_local and made.local is not None:
                    made = evaluation_module.with_local_score(made, self.task)
            if self.ranked and name not in ("@global", "@cluster"):  # those score the server's own models
                made = ranks.at_rank(made, self.task, self.own_rank)
            if self.task.vectorize is not True:
                made = made._replace(vectorize=self.task.vectorize)
            self._visits[name, score_local] = made
        return self._visits[name, score_local]


def shared_by(config: Any) -> str:
    """What decides a run's task and data, as text: of two runs that agree in it, one set serves both."""
    d = config.to_dict()
    return json.dumps([d[k] for k in ("seed", "task", "federation", "local", "init", "adapter")], sort_keys=True)


class Worker:
    """Executes jobs of any run that was set up; holds no client's state between calls."""

    RUNS = 4  # runs kept resident: a study's arms alternate, a sweep's trials move on

    def __init__(self, device: str = "cpu", keep: int = RUNS):
        self.device, self.keep = device, keep
        if device != "cpu":
            kernels.prepare_gpu()
        self.runs: OrderedDict[str, Resident] = OrderedDict()

    def setup(self, run: str, config: Any, federation: Federation, start: Any = None) -> None:
        """Make a run resident; `start`: see `rayfed.engine.runner.start_from`."""
        same = shared_by(config)
        like = next((r for r in self.runs.values() if r.same == same), None)
        self.adopt(run, Resident(config, federation, start, self.device, like))

    def adopt(self, run: str, resident: Resident) -> None:
        """A run that was made resident by others."""
        self.runs[run] = resident
        while len(self.runs) > self.keep:
            self.runs.popitem(last=False)

    def do(self, job: Job, values: Sequence[Any]) -> tuple[dict[str, Any], Tree | None, Tree | None]:
        """(small answer, large parts that stay where they are, new client states); trees of NumPy arrays, (k, ...)."""
        res = self.runs[job.run]
        resources = res.config.resources
        with (
            kernels.using(kernels.from_resources(resources, self.device)),
            kernels.deterministic(resources.deterministic),
        ):
            return getattr(self, f"_{job.kind}")(res, job.args, values)

    # -- a visit ---------------------------------------------------------------------------------------------------

    def _visit(
        self, res: Resident, args: dict[str, Any], values: Sequence[Any]
    ) -> tuple[dict[str, Any], Tree | None, Tree | None]:
        call: Call = args["call"]
        began = time.perf_counter()
        while (out := self._attempt(res, call, values, began)) is None:
            res.careful = True  # somebody's reply has a NaN or an infinity: find out whose
        return out

    def _attempt(
        self, res: Resident, call: Call, values: Sequence[Any], began: float
    ) -> tuple[dict[str, Any], Tree | None, Tree | None] | None:
        """The whole call; None where a fold came out with a NaN or an infinity and nobody had looked at the replies themselves."""
        visit = res.visit(call.visit, call.score_local)
        lr = optimizers.rate(res.config.local, call.round, call.rounds)
        cohort = res.sampler.cohort(
            visit, call.clients, dispatch=call.dispatch, round=call.round, rounds=call.rounds, lr=lr
        )
        # Payloads are copied out of the store: a method's in-place write must never reach another client.
        shared = {
            n: tree.map(lambda x: x.clone(), tree.from_numpy(values[i], self.device)) for i, n in enumerate(call.shared)
        }
        mine = tree.from_numpy(call.mine, self.device)
        own = self._own(res, call, values)
        with torch.no_grad():
            return self._collect(res, call, visit, cohort, shared, mine, own, began)

    def _collect(
        self, res: Resident, call: Call, visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, began: float
    ) -> tuple[dict[str, Any], Tree | None, Tree | None] | None:
        failures: dict[int, Failure] = {}
        folded: dict[str, dict[str, Any]] = {}
        kept: list[Tree] = []
        states: list[Tree] = []
        clients: list[int] = []
        counted: dict[str, list[Any]] = {"examples": [], "steps": [], "ranks": []}
        local: dict[int, dict[str, float]] = {}
        sent = 0
        evaluation = call.visit.startswith("@")
        # What only folds is looked at in the fold: a pass over memory less for each reply.
        unseen = set() if res.careful else {f.part for f in call.folds} - set(call.keep)
        for at, parts, after, steps in self._chunks(res, visit, cohort, shared, mine, own, failures):
            good = self._finite(cohort, at, {n: p for n, p in parts.items() if n not in unseen}, after, failures)
            if not good:
                continue
            if len(good) < len(at):
                rows = torch.as_tensor([i for i, p in enumerate(at) if p in set(good)], device=self.device)
                parts, after, steps = (tree.map(lambda x, rows=rows: x[rows], t) for t in (parts, after, steps))
            here = torch.as_tensor(good, device=self.device)
            ids = [cohort.clients[p] for p in good]
            now = after["rank"] if res.own_rank else cohort.info.rank[here]
            scores = parts.pop("@local", None)
            if scores is not None:
                local.update({c: {n: float(x[i]) for n, x in scores.items()} for i, c in enumerate(ids)})
            if not evaluation:
                check_wire(res.method.wire.up, parts, res.task, call.visit)
                check_wire(res.method.wire.keep, after, res.task, f"{call.visit} (client state)", all_of_them=True)
                sent += ranks.cost(res.method.cost, parts, now.tolist() if res.ranked else None)
                sent += 8 * len(ids) * any(f.weight == "examples" for f in call.folds)  # n_i
            examples = cohort.info.examples[here]
            for fold in call.folds:
                theirs = tree.map(lambda x, here=here: x[here], mine)
                folded[fold.part] = partial(fold, parts, theirs, examples, folded.get(fold.part))
            stay = {n: p for n, p in parts.items() if n in call.keep or n not in {f.part for f in call.folds}}
            kept.append(tree.map(lambda x: x.contiguous(), stay))
            states.append(after)
            clients += ids
            counted["examples"] += examples.tolist()
            counted["ranks"] += now.tolist()
            counted["steps"] += torch.as_tensor(steps).reshape(-1).tolist()
            del parts, after, stay  # the next reply then takes this one's memory
        if not sums_are_finite(p["total"] for n in unseen for p in folded.get(n, {}).values()):
            return None
        stacked = _join(kept)
        large = {n: p for n, p in stacked.items() if sum(x[0].numel() for x in tree.values(p)) > SMALL}
        small = {n: p for n, p in stacked.items() if n not in large}
        wants_own = not evaluation and bool(res.method.wire.keep) and bool(clients)
        meta = {
            "clients": clients,
            "failures": failures,
            "folded": fold_to_numpy(folded),
            "small": tree.to_numpy(small),
            "large": tuple(large),
            "has_own": wants_own,
            "local": local,
            "bytes_up": sent,
            "before": dict(zip(call.clients, own["rank"].tolist(), strict=True)) if res.own_rank else {},
            "seconds": time.perf_counter() - began,
            **counted,
        }
        return meta, tree.to_numpy(large) if large else None, tree.to_numpy(_join(states)) if wants_own else None

    def _chunks(
        self,
        res: Resident,
        visit: Visit,
        cohort: Cohort,
        shared: Tree,
        mine: Tree,
        own: Tree,
        failures: dict[int, Failure],
    ) -> Iterator[tuple[list[int], Tree, Tree, Any]]:
        """(positions, parts, own, steps) piece by piece; what a client raises goes to `failures` and the rest goes on."""
        name = res.config.resources.executor
        everyone = list(range(len(cohort.clients)))
        if name == "vmap":
            if isinstance(visit.vectorize, str):
                raise VectorizeError(visit.vectorize)
            made, short = None, False
            try:
                ((_, *made),) = execute.execute_visit("vmap", visit, cohort, shared, mine, own, res.data)
            except torch.OutOfMemoryError:  # nobody's fault
                short = True
            except Exception:  # out of here, for the error holds on to what was made
                pass
            if made is not None:
                yield everyone, *made
                return
            if short:
                raise TooLarge(len(everyone), res.config.resources.gpus_per_actor)
            # Only alone can a client be told from what vmap cannot run; what passed alone is then tried once more.
            bad = self._culprits(res, visit, cohort, shared, mine, own, failures)
            rest, stay = cohort.without(bad)
            if stay:
                at = torch.as_tensor(stay, device=self.device)
                less = [tree.map(lambda x: x[at], t) for t in (mine, own)]
                try:
                    ((_, parts, after, steps),) = execute.execute_visit(
                        "vmap", visit, rest, shared, less[0], less[1], res.data
                    )
                except Exception as error:
                    raise VectorizeError(f"{type(error).__name__}: {error}") from error
                yield stay, parts, after, steps
            return
        for i in everyone:
            try:
                out = [self._alone(res, name, visit, cohort, i, shared, mine, own)]
            except Exception as error:
                failures[cohort.clients[i]] = _failure(error)
                continue
            yield [i], *out.pop()  # and this frame holds it no longer

    def _alone(
        self, res: Resident, name: str, visit: Visit, cohort: Cohort, i: int, shared: Tree, mine: Tree, own: Tree
    ) -> tuple[Tree, Tree, Any]:
        cut = [tree.map(lambda x: x[i : i + 1], t) for t in (mine, own)]

        def once() -> tuple[Tree, Tree, Any]:
            ((_, parts, after, steps),) = execute.execute_visit(
                name, visit, cohort.one(i), shared, cut[0], cut[1], res.data
            )
            return parts, after, steps

        try:
            return once()
        except Exception:
            if res.config.failures.client_error != "retry":
                raise
            return once()

    def _culprits(
        self,
        res: Resident,
        visit: Visit,
        cohort: Cohort,
        shared: Tree,
        mine: Tree,
        own: Tree,
        failures: dict[int, Failure],
    ) -> list[int]:
        bad = []
        for i in range(len(cohort.clients)):
            try:
                self._alone(res, "loop", visit, cohort, i, shared, mine, own)
            except Exception as error:
                bad.append(i)
                failures[cohort.clients[i]] = _failure(error)
        return bad

    def _finite(
        self, cohort: Cohort, at: list[int], parts: Tree, after: Tree, failures: dict[int, Failure]
    ) -> list[int]:
        """The positions whose reply and state hold no NaN and no infinity; the others become failures."""
        parts = {n: p for n, p in parts.items() if n != "@local"}
        if sums_are_finite((parts, after)):
            return at
        ok = torch.ones(len(at), dtype=torch.bool, device=self.device)
        blame: dict[int, str] = {}
        for kind, t in (("part", parts), ("client state", after)):
            for path, x in tree.leaves(t):
                if not x.is_floating_point():
                    continue
                fine = torch.isfinite(x.reshape(len(at), -1)).all(1)
                if not bool(fine.all()):
                    for i in (~fine).nonzero()[:, 0].tolist():
                        blame.setdefault(i, f"NaN or infinity in {kind} {'/'.join(path)}")
                    ok &= fine
        for i, reason in blame.items():
            failures[cohort.clients[at[i]]] = Failure(reason, "")
        return [p for i, p in enumerate(at) if bool(ok[i])]

    def _own(self, res: Resident, call: Call, values: Sequence[Any]) -> Tree:
        """Client states stacked, (k, ...): from the blocks they lie in, or fresh for clients without one."""
        if not res.method.wire.keep:
            return {}
        seed, n = res.config.seed, len(call.shared)
        rows = []
        for client, place in zip(call.clients, call.own or (None,) * len(call.clients), strict=True):
            if place is None:
                fresh = res.method.own_init(res.task, client, keys.key(seed, 0, client, "own state"))
                rows.append(tree.map(lambda x: x.to(self.device), fresh))
            else:
                rows.append(tree.from_numpy(tree.row(values[n + place[0]], place[1]), self.device))
        return tree.stack(rows)

    # -- where the large parts lie -----------------------------------------------------------------------------------

    def _linear(
        self, res: Resident, args: dict[str, Any], values: Sequence[Any]
    ) -> tuple[dict[str, Any], Tree | None, Tree | None]:
        """W (K, c) times the part's rows of one cohort (c, ...) -> (K, ...)."""
        part = tree.from_numpy(values[0][args["part"]], self.device)
        w = torch.as_tensor(args["weights"], device=self.device)
        return {"value": tree.to_numpy(tree.combine(w, part))}, None, None

    def _pick(
        self, res: Resident, args: dict[str, Any], values: Sequence[Any]
    ) -> tuple[dict[str, Any], Tree | None, Tree | None]:
        """Some entries of the part of one cohort, (c, ...)."""
        part = values[0][args["part"]]
        return {"value": {n: part[n] for n in args["names"]}}, None, None

    def _gram(
        self, res: Resident, args: dict[str, Any], values: Sequence[Any]
    ) -> tuple[dict[str, Any], Tree | None, Tree | None]:
        """Inner products of two cohorts' parts, (a, b)."""
        a, b = (tree.values(tree.from_numpy(v[args["part"]], self.device)) for v in values)
        g = sum(x.reshape(x.shape[0], -1) @ y.reshape(y.shape[0], -1).T for x, y in zip(a, b, strict=True))
        return {"value": tree.to_numpy(g)}, None, None

    def _dot(
        self, res: Resident, args: dict[str, Any], values: Sequence[Any]
    ) -> tuple[dict[str, Any], Tree | None, Tree | None]:
        """Inner products of one cohort's part (c, ...) with K trees (K, ...), whose entries it may be more than: (c, K) float64."""
        a, b = (tree.from_numpy(v, self.device) for v in (values[0][args["part"]], values[1]))
        here, products = dict(tree.leaves(a)), []
        for path, y in tree.leaves(b):
            # Row by row and in fresh memory: a client's bits depend neither on its cohort nor on where its row lay.
            wide = y.reshape(y.shape[0], -1).to(torch.float64, copy=True)
            rows = (x.reshape(-1).to(torch.float64, copy=True) for x in here[path])
            products.append(torch.stack([wide @ x for x in rows]))
        g = torch.stack(products).sum(0)
        return {"value": tree.to_numpy(g)}, None, None

    def _probe(
        self, res: Resident, args: dict[str, Any], values: Sequence[Any]
    ) -> tuple[dict[str, Any], Tree | None, Tree | None]:
        """See `rayfed.execute.tuning.autotune`."""
        return {"value": autotune.time_executors(res, args["cohort"])}, None, None


class VectorizeError(RuntimeError):
    """`vmap` was asked for what it cannot run; the text is the reason."""


class TooLarge(RunFailed):
    """A cohort does not fit into the device's memory."""

    def __init__(self, clients: int, share: Any):
        self.clients, self.share = clients, share
        fewer = f"resources.cohort: {clients // 2}" if clients > 1 else "resources.executor: loop"
        super().__init__(
            f"out of memory: {clients} clients at once do not fit on an actor's device; try {fewer}, "
            f"task.model.checkpointing: true, or more resources.gpus_per_actor ({share} found)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.clients, self.share), {"hint": self.hint})


def _failure(error: Exception) -> Failure:
    cause = error.__cause__ if isinstance(error, PieceFailed) and error.__cause__ is not None else error
    trace = "".join(traceback.format_exception(type(cause), cause, cause.__traceback__))
    return Failure(
        f"{type(cause).__name__}: {cause}", trace, error.arguments if isinstance(error, PieceFailed) else None
    )


def _join(pieces: list[Tree]) -> Tree:
    if not pieces:
        return {}
    return pieces[0] if len(pieces) == 1 else tree.map(lambda *xs: torch.cat(xs), *pieces)


def sums_are_finite(trees: Iterable[Tree]) -> bool:
    """False where a tree has a NaN or an infinity (or sums to one); one question to the device for all leaves."""
    total = 0.0
    for t in trees:
        for x in tree.values(t):
            if x.is_floating_point():
                total = total + x.sum()
    return math.isfinite(total)


def check_wire(declared: dict[str, Any], parts: Tree, task: Task, where: str, all_of_them: bool = False) -> None:
    """Raise TypeError where a part (leaves (k, ...)) is not declared or not of the declared shape."""
    unknown = [n for n in parts if n not in declared]
    missing = [n for n in declared if n not in parts] if all_of_them else []
    if unknown or missing:
        raise TypeError(f"{where}: parts {sorted(parts)} against the wire's {sorted(declared)}")
    for name, part in parts.items():
        problem = mismatch(declared[name].like, part, task)
        if problem:
            raise TypeError(f"{where}: part {name!r} is declared {declared[name].like!r} but {problem}")


def mismatch(like: str, part: Tree, task: Task, lead: int = 1) -> str | None:
    """What is wrong with a tree against `like`; `lead` leading axes are skipped.

    like: "params", "K x params", "params of head" (see `Task.some_params`), "scalar", "(C, 3) int64" (numbers and C, the
    classes, are measured; other letters stand for any size), "any".
    """
    if like.endswith(" x params"):
        return mismatch("params", part, task, lead + 1)
    if like == "params" or like.startswith("params of "):
        whole = task.params_like if like == "params" else task.some_params(like.removeprefix("params of "))
        shapes = {n: tuple(p.shape) for n, p in whole.items()}
        found = {n: tuple(p.shape[lead:]) for n, p in part.items()} if isinstance(part, dict) else None
        return None if found == shapes else "its names or shapes are not the model's"
    if like == "scalar" or like.startswith("("):
        names = [] if like == "scalar" else [s.strip() for s in like[1 : like.index(")")].split(",") if s.strip()]
        if isinstance(part, dict):
            return "is a tree"
        shape = tuple(part.shape[lead:])
        if len(shape) != len(names):
            return f"has {len(shape)} axes"
        want = [task.classes if s == "C" else int(s) if s.isdigit() else n for s, n in zip(names, shape, strict=True)]
        if list(shape) != want:
            return f"has shape {shape}"
        kind = like.partition(")")[2].strip()
        if kind and str(part.dtype) != f"torch.{kind}":
            return f"is {part.dtype}"
    return None
