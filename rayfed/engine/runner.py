"""A run, round by round: the same program in a Ray actor and in the calling process. Knows no method by name."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError

from rayfed import keys, tree, visits
from rayfed.config import phases
from rayfed.config.own_errors import contained, describe
from rayfed.config.watchdog import Watchdog
from rayfed.engine import cohorts, collapse, exports
from rayfed.engine.best import BestModels, is_over
from rayfed.engine.dispatch import Dispatch
from rayfed.engine.evaluation import Evaluator, Unscored, nothing_to_score
from rayfed.engine.failures import ClientFailed, VectorizeError, may_pass
from rayfed.engine.messages import Job, TimingCall, Value
from rayfed.engine.resident import Resident
from rayfed.engine.score_notes import notes_on_scores
from rayfed.engine.snapshotter import Snapshotter
from rayfed.engine.worker import sums_are_finite
from rayfed.errors import FailsAgain, RayfedError, RunFailed
from rayfed.execute.choice import FIXED, Choice
from rayfed.execute.tuning import kernels
from rayfed.fed import Fed
from rayfed.lazy import torch
from rayfed.metrics import READY_MEASURES, lower_is_better
from rayfed.models.pretrained import has_frozen_base
from rayfed.models.start import start_from
from rayfed.report.model_card import write_card
from rayfed.storage import row_scores, snapshots, timeline
from rayfed.storage.atomic import os_error_text, remove
from rayfed.storage.events import READS_ROUNDS, read_events
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.run_status import RunStatus
from rayfed.storage.tree_files import load_tree, save_tree
from rayfed.track import Sinks

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.engine.pool import Pool
    from rayfed.execute.tuning.autotune import Timing
    from rayfed.method import Method
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree


LIVE_S = 0.2  # between two writings of state.json
ONE_OFF = 2  # rounds after a start, which record, compile and fill caches
REPEATABLE = "--set resources.deterministic=true"
HALF_BASE = 0.75  # of float32's time, from which on `task.dtype: auto` takes a base in bfloat16: it rounds differently


class Ending(NamedTuple):
    """How a run ended, DONE or STOPPED, and after which round."""

    status: RunStatus
    round: int


@dataclass
class PreparedRun:
    """A run that is resident in its pool and stands at its last committed round.

    first: the round of the snapshot that it went on from, 0 of a new run; seconds_before: what the rounds up to there took;
    reached: the last committed round; state: the server's after it; snapshotted: whether it has a snapshot; early: whether
    `stop` of the config ended the run there; scored: rows of the evaluated rounds; collapsed: see `rayfed.engine.collapse`;
    reads_rounds: whether the folder's events say that the method reads `fed.rounds`.
    simulated: seconds on the clients' devices up to the last committed round; watched: the values of `stop.metric` so far;
    best: keeps the models of the best round, None where nobody asked for them.
    """

    method: Method
    task: Task
    fed: Fed
    dispatch: Dispatch
    evaluator: Evaluator
    snapshotter: Snapshotter
    state: Tree
    first: int
    seconds_before: float
    reached: int
    snapshotted: bool = True
    early: bool = False
    scored: list[dict[str, Any]] = field(default_factory=list)
    collapsed: collapse.Collapse | None = None
    reads_rounds: bool = False
    simulated: float = 0.0
    watched: list[float] = field(default_factory=list)
    best: BestModels | None = None


@dataclass(frozen=True)
class RoundResult:
    """A round that is computed, but not committed: the new server state, its row, and where it was evaluated a row per client and
    what could not be scored."""

    round: int
    state: Tree
    row: dict[str, Any]
    client_rows: list[dict[str, Any]] | None
    unscored: list[Unscored]


class Runner:
    """Executes one run into its folder. `stop()` may be called from another thread; the round under way still commits."""

    def __init__(
        self,
        config: Config,
        federation: Federation,
        pool: Pool,
        folder: RunFolder,
        *,
        progress: Callable[[dict[str, Any]], None] | None = None,
        before_commit: Callable[[], None] | None = None,
    ):
        """progress: is called with the live status; before_commit: may raise, and nothing is then committed."""
        self.pool, self.folder, self.federation = pool, folder, federation
        self.progress = progress or (lambda status: None)
        self.before_commit = before_commit or (lambda: None)
        self.config = config
        self.status: dict[str, Any] = {
            "run": folder.run_id,
            "status": RunStatus.STARTING,
            "round": 0,
            "rounds": config.rounds,
        }
        self.sinks = Sinks(config.track, folder.event)
        self.notes: list[str] = []  # of the workers, for the summary
        self._given_up: dict[str, str] = {}  # what could not be written -> a sentence
        self._prepared: PreparedRun | None = None
        self._stop_asked = False
        self._seconds = 0.0  # of work so far
        self._quickest = math.inf  # seconds of a round, without those that do one-off work
        self._began = 0.0  # the clock's reading when the work began, without the pauses since
        self._status_written = -math.inf
        self._paced: tuple[int, float] | None = None  # the first round that was committed here, and when
        self._active = time.monotonic()  # when a piece of work began or a round was committed
        self._watchdog = Watchdog(self._active_at, self._say_waiting)

    @property
    def prepared(self) -> PreparedRun:
        """Return the run as it stands; RuntimeError before `prepare`."""
        if self._prepared is None:
            raise RuntimeError("the run is not prepared yet")
        return self._prepared

    def stop(self) -> None:
        """Finish the round under way, commit it with a snapshot, and end as `stopped`."""
        self._stop_asked = True

    # -- the rounds ----------------------------------------------------------------------------------------------------

    def execute(self) -> Ending:
        """Start or continue the run. RunFailed says what broke and how to go on; the folder stays valid throughout."""
        self.prepare()
        self.advance(self.config.rounds)
        return self.finish()

    def prepare(self) -> PreparedRun:
        """Make the run resident and go to its folder's last snapshot. Errors as in `execute`, here and in the next two."""
        with self._at_work():
            self._prepared = self._make_resident()
            self.sinks.open(self.folder.run_id, self.config.to_dict(), self.folder.path)
        return self._prepared

    def advance(self, to: int) -> int:
        """Execute rounds up to number `to`, which is committed with a snapshot; returns the last one. Fewer after `stop()` or an
        early stop."""
        run, last = self.prepared, min(to, self.config.rounds)
        with self._at_work():
            while run.reached < last and not run.early and not (self._stop_asked and run.snapshotted):
                self._commit(self._compute(run.reached + 1), last)
            run.snapshotter.settle(wait=True)
        return run.reached

    def finish(self) -> Ending:
        """End the run: done, or stopped where rounds are left."""
        run = self.prepared
        with self._at_work():
            over = run.early or run.reached >= self.config.rounds
            ending = self._end_done() if over else self._end_stopped()
        self.sinks.close(self.status["status"])
        return ending

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Count the time as this run's; an error is written into the folder and closes the sinks."""
        began = time.perf_counter()
        try:
            self._began, self._active = began - self._seconds, time.monotonic()
            with kernels.using(kernels.from_resources(self.config.resources)), contained(), self._watchdog.watching():
                yield
        except BaseException as error:
            self.status["status"] = RunStatus.FAILED
            reported: BaseException = error
            if isinstance(error, Exception) and not isinstance(error, RayfedError):  # a method's own, or ours
                reported = RunFailed(f"{describe(error)}\n{traceback.format_exc().rstrip()}")
                reported.certain = not may_pass(error)
                if isinstance(error, VectorizeError):
                    reported.change = "--set resources.executor=loop"
            self._write_failure(reported)
            self.sinks.close(self.status["status"])
            if reported is error:
                raise
            raise reported from error
        finally:
            self._seconds += time.perf_counter() - began

    def live(self) -> dict[str, Any]:
        """Return the live status and who is at work. May be called from another thread."""
        return {**self.status, "at_work": self._prepared.dispatch.at_work() if self._prepared else ""}

    def _active_at(self) -> float:
        return max(self._active, self._prepared.dispatch.active if self._prepared else 0.0)

    def _say_waiting(self, idle: float, where: str) -> None:
        """Report that nothing has ended for a while; called by the watchdog's thread."""
        live = self.live()
        round = f"in round {live['round'] + 1}" if self._prepared else "while the run is set up"
        about = "; ".join(t for t in (live["at_work"], where) if t)
        text = f"nothing has ended for {idle:.0f} s {round}" + (f" ({about})" if about else "")
        self.status["waiting"] = text
        self.progress({**live, "waiting": text})
        self.folder.event("waiting", text=text)

    def _write_failure(self, error: BaseException) -> None:
        """Write an error into the folder, and into the error how to go on."""
        with suppress(
            Exception
        ):  # the snapshot under way is one to go on from; what went wrong with it is not the first error
            self.folder.wait()
        if isinstance(error, RunFailed):
            error.hint = self._how_to_go_on(error)
            self.status["certain"] = error.certain
        try:
            self.folder.event("failed", error=f"{type(error).__name__}: {error}")
            self.folder.state(**self.status)
            self.folder.close()
        except Exception:  # a full disk must not hide the first error
            pass

    def _how_to_go_on(self, error: RunFailed) -> str:
        """Return what leads on from an error; nobody is sent to resume what would fail again."""
        path = self.folder.path
        if error.certain and not error.change:
            said = f"It would fail there again: the code or the settings have to change. The rounds before it are in {path}"
        else:
            command = f"rayfed resume {path} {error.change}".rstrip()
            said = f"The folder is valid up to its last snapshot; continue with: {command}"
        if not isinstance(error, ClientFailed):
            return said
        if error.failure.arguments is not None:
            where = path / "debug"
            where.mkdir(exist_ok=True)
            name = f"client-{error.client}-round-{error.round}"
            save_tree(where, name, error.failure.arguments)
            return f"{said}\nWhat its code was given is in {where / name}.safetensors"
        begin = f"resume {path}" if snapshots.list_snapshots(path / "snapshots") else f"run {path / 'config.yaml'}"
        return f"{said}\nTo look at this client: rayfed {begin} --local --set resources.executor=debug"

    def _enter(self, phase: str) -> None:
        """Say what the time before the first round goes into."""
        self.status["phase"] = phase
        phases.begin(phase)

    def _make_resident(self) -> PreparedRun:
        self._enter("building the model")
        self._timed = self.config.resources.executor == "auto" or any(
            "repeat" in e for e in read_events(self.folder.path) if e["kind"] == "executor"
        )
        if self.config.resources.deterministic:
            self._fix_choices()
        if self.config.task.dtype == "auto":
            self._choose_dtype()
        run_id, start = self.folder.run_id, start_from(self.config)
        self._resident = resident = Resident(self.config, self.federation, start, "cpu")
        method, task = resident.method, resident.task
        self.pool.setup(run_id, self.config, self.federation, start)
        if self.pool.adopts and cohorts.may_begin_alone(self.config):
            step = cohorts.estimate_step(self.config, self.federation, task)
            self.pool.begin_here(run_id, resident, step * cohorts.client_steps(self.config, self.federation))
        if self.config.resources.executor == "auto":
            self._enter("trying executors")
            self._choose_executor(method, task, start)
        elif self.config.resources.visits == "auto":
            self._choose_calls(method, task)
        resident.config = self.config
        if self.config.resources.visits == "server":
            self.pool.adopt(run_id, resident)
        dispatch = Dispatch(self.config, self.federation, method, task, self.pool, run_id)
        dispatch.watch, dispatch.note = lambda visits: self.status.update(visits=visits), self._add_note
        fed = Fed(self.config, self.federation, method, task, dispatch)
        first, snapshot = self.folder.rewind()
        if snapshot is None:
            state = method.init(task, keys.key(self.config.seed, 0, -1, "init"))
        else:
            state = tree.from_numpy(load_tree(snapshot, "server"))
            dispatch.load(snapshot, self.folder.path / "segments")
            self.folder.event("resumed", round=first)
        undeclared = sorted(set(state) ^ set(method.wire.server))
        if undeclared:
            raise FailsAgain(f"the server state's parts and `wire.server` differ in {undeclared}")
        rows = self.folder.metrics().to_pylist()
        scored = [row for row in rows if row.get(collapse.METRIC) is not None]
        stop, kept = str(self.config.stop.metric), self.config.storage.best
        watched = [row[stop] for row in rows if row.get(stop) is not None]
        self._chance = collapse.chance(task, self.federation)
        if not first and (reason := nothing_to_score(self.federation)):
            self.folder.event("no metric", reason=reason)
        self._enter(f"round {first + 1}")
        evaluator = Evaluator(fed, dispatch)
        if not first and (sample := evaluator.sample()):
            self.folder.event("sample", text=sample)
        return PreparedRun(
            method=method,
            task=task,
            fed=fed,
            dispatch=dispatch,
            evaluator=evaluator,
            snapshotter=Snapshotter(self.folder, dispatch.states, self.config.storage.snapshot_every, dispatch.engine),
            state=state,
            first=first,
            seconds_before=self._seconds_of(first),
            reached=first,
            scored=scored,
            collapsed=collapse.find(scored, self._chance),
            reads_rounds=any(e["kind"] == READS_ROUNDS for e in read_events(self.folder.path)),
            simulated=max((row.get("time/simulated") or 0.0 for row in rows), default=0.0),
            early=self._stops_early(watched),
            watched=watched,
            best=BestModels(self.folder.path, kept, rows) if kept else None,
        )

    def _add_note(self, sentence: str) -> None:
        """Write what a worker's process has switched off into the folder's events: once, however many processes say it."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            self.folder.event("replay", reason=sentence)

    def _seconds_of(self, r: int) -> float:
        """Sum the seconds that the first r rounds took, in whichever process."""
        rows = [row for row in self.folder.metrics().to_pylist() if row["round"] <= r] if r else []
        return sum(row.get(n) or 0.0 for row in rows for n in ("time/round", "time/evaluate"))

    def _fix_choices(self) -> None:
        """Choose by rule what timing would choose, so that the same settings give the same bits in every run."""
        fixed = FIXED.apply(self.config)
        if fixed != self.config:
            self.config = fixed
            self.folder.set_config(self.config.to_dict())
            self.folder.event("executor", chosen=fixed.resources.executor, judged_by="rule", repeat=REPEATABLE)

    def _choose_dtype(self) -> None:
        """Make `task.dtype: auto` float32 or, where a frozen base in bfloat16 is clearly faster by timing, bf16: once, like an executor."""
        asked, seconds = self.config, {}
        for dtype in ("float32", "bf16") if has_frozen_base(asked) else ():
            self.config = asked.with_dtype(dtype)
            start = start_from(self.config)
            self.pool.setup(self.folder.run_id, self.config, self.federation, start)
            task = Resident(self.config, self.federation, start, "cpu").task
            timing = self._time_executors(cohorts.cohort_size(self.config, task))
            seconds[dtype] = timing.seconds.get(asked.resources.executor, min(timing.seconds.values()))
            if not timing.bfloat16:
                break
        chosen = "bf16" if seconds.get("bf16", math.inf) < HALF_BASE * seconds.get("float32", 0.0) else "float32"
        self.config = asked.with_dtype(chosen)
        self.folder.set_config(self.config.to_dict())
        self.folder.event("dtype", chosen=chosen, seconds=seconds, repeat=f"--set task.dtype={chosen}")

    def _choose_executor(self, method: Method, task: Task, start: Any) -> None:
        """Make `executor: auto` `vmap` or `loop`, once, by timing; with it go the size of cohorts and where visits run."""
        timing = self._time_executors(cohorts.cohort_size(self.config, task))
        chosen = timing.faster
        plain = _refusals(method, task) if chosen == "vmap" else {}
        step = timing.seconds["loop" if plain else chosen]
        size, where = cohorts.choose_calls(self.config, self.federation, task, step, self.pool.adopts)
        by = timing.kernels[chosen]._asdict()
        choice = Choice(chosen, size, where, **by, dtype=self.config.task.dtype)
        self.config = choice.apply(self.config)
        self.folder.set_config(self.config.to_dict())
        self.folder.event(
            "executor",
            chosen=chosen,
            cohort=size,
            visits=where,
            seconds=timing.seconds | ({"why": timing.refused} if timing.refused else {}),
            kernels=by,
            plain=plain,
            threads=torch.get_num_threads(),
            cpu_share=round(timing.cpu_share, 2),
            judged_by=timing.judged_by,
            repeat=choice.as_options(),
        )
        method.config = self.config
        self.pool.setup(self.folder.run_id, self.config, self.federation, start)

    def _choose_calls(self, method: Method, task: Task) -> None:
        """Choose, under an executor that the config sets, the size of cohorts and where visits run: once, by estimate, not by timing,
        so that the same settings give the same bits on every machine."""
        executor = self.config.resources.executor
        plain = _refusals(method, task) if self.config.resources.vectorised else {}
        judged = self.config.with_resources(executor="loop") if plain else self.config
        step = cohorts.estimate_step(judged, self.federation, task)
        size, where = cohorts.choose_calls(self.config, self.federation, task, step, self.pool.adopts)
        self.config = replace(Choice.in_effect(self.config, size), visits=where).apply(self.config)
        self.folder.set_config(self.config.to_dict())
        self.folder.event(
            "executor",
            chosen=executor,
            cohort=size,
            visits=where,
            plain=plain,
            threads=torch.get_num_threads(),
            judged_by="estimate",
        )

    def _time_executors(self, cohort: int) -> Timing:
        """Return what `rayfed.execute.tuning.autotune.time_executors` gives in a worker, once per model and machine."""
        settings = [self.config.to_dict()[k] for k in ("task", "local", "resources")]
        key = json.dumps([*settings, cohort], sort_keys=True, default=str)
        if key not in self.pool.timings:
            ((_, outcome),) = list(self.pool.execute([Job(self.folder.run_id, TimingCall(cohort))]))
            assert isinstance(outcome.result, Value)
            self.pool.timings[key] = outcome.result.value
            for sentence in outcome.result.notes:
                self._add_note(sentence)
        return self.pool.timings[key]

    def _compute(self, r: int) -> RoundResult:
        """Compute round r, again under `loop` where timing chose `vmap` and a visit turns out not to run under it."""
        try:
            return self._compute_once(r)
        except VectorizeError as error:
            if not self._timed:
                raise
            self._fall_back_to_loop(r, str(error))
        return self._compute_once(r)

    def _fall_back_to_loop(self, r: int, reason: str) -> None:
        """Execute the run under `loop` from round r on, and when it is resumed."""
        self.config = self.config.with_resources(executor="loop")
        self.folder.set_config(self.config.to_dict())
        self.folder.event("executor", chosen="loop", round=r, reason=reason)
        start, run_id = start_from(self.config), self.folder.run_id
        self.prepared.method.config = self.config
        self.pool.setup(run_id, self.config, self.federation, start)
        self._resident.config = self.config  # which the pool may have adopted

    def _compute_once(self, r: int) -> RoundResult:
        """Compute round r; client states that it wrote are forgotten where it fails."""
        run, config, clock = self.prepared, self.config, time.perf_counter()
        evaluated = config.is_evaluated(r)
        run.fed.begin(r, score_local=evaluated)
        try:
            state = run.method.round(run.state, run.fed, run.task)
            self._check_state(state, r)
            if config.devices.profile != "none":
                self._keep_timeline()
            seconds = time.perf_counter() - clock
            row: dict[str, Any] = {name: total / weight for name, (total, weight) in run.fed.logged.items()}
            client_rows, unscored = None, []
            if evaluated:
                scores, client_rows = run.evaluator.evaluate(state, run.dispatch.local_scores, run.dispatch.seconds)
                row |= scores
                unscored = run.evaluator.unscored
                row["time/evaluate"] = time.perf_counter() - clock - seconds
                if run.evaluator.kept:
                    with self.folder.unlocked(f"write the scores of rows of round {r}"):
                        row_scores.write(self.folder.path, r, run.evaluator.kept)
        except BaseException:
            run.dispatch.rollback()
            raise
        return RoundResult(r, state, row | self._counts(seconds), client_rows, unscored)

    def _keep_timeline(self) -> None:
        """Keep who worked when in the round, for the end; provisional as the round is."""
        run, engine = self.prepared, self.prepared.dispatch.engine
        visits = run.fed.worked(run.simulated)
        engine.put(timeline.NAME, timeline.grown(engine.get(timeline.NAME), visits, run.fed.stale))

    def _counts(self, seconds: float) -> dict[str, Any]:
        """Return what a round's row says of bytes, time and visits."""
        dispatch = self.prepared.dispatch
        bytes_ = dispatch.meter.row()
        virtual = self.prepared.simulated + self.prepared.fed.elapsed
        return {
            **dispatch.logged(),
            **({"time/simulated": virtual} if self.config.devices.profile != "none" else {}),
            **{name: float(n) for name, n in bytes_.items()},
            "ray/bytes": float(bytes_["ray/bytes/up"] + bytes_["ray/bytes/down"]),
            "time/round": seconds,
            "clients/visits": dispatch.visits,
            "clients/dropped": dispatch.dropped,
            **(dispatch.ruling.row() if dispatch.ruling else {}),
            "clients/per_second": dispatch.visits / max(seconds, 1e-9),
            "actors/restarts": self.pool.restarts,
        }

    def _commit(self, result: RoundResult, last: int) -> None:
        """Make a round the run's newest. last: the round that a piece of work ends with."""
        run, r = self.prepared, result.round
        if r > run.first + ONE_OFF:
            self._quickest = min(self._quickest, result.row["time/round"])
        value = result.row.get(str(self.config.stop.metric))
        watched = run.watched if value is None else [*run.watched, value]
        early = value is not None and self._stops_early(watched)
        due = r == last or self._stop_asked or early or run.snapshotter.due(r)
        self.before_commit()
        self._keep_best(result)
        run.snapshotter.settle(wait=due)
        snapshot = (lambda folder: run.snapshotter.fill(folder, r, result.state)) if due else None
        self.folder.commit(r, result.row, result.client_rows, snapshot)
        run.dispatch.commit()
        if run.best:
            run.best.committed()
        if due:
            run.snapshotter.begun(r)
        run.reached, run.state, run.snapshotted, run.watched = r, result.state, due, watched
        run.simulated = result.row.get("time/simulated", 0.0)
        self.sinks.row(r, result.row)
        self._note_scores(result)
        self._publish(r, result.row)
        if early:
            run.early = True
            metric = str(self.config.stop.metric)
            with suppress(RunFailed):  # the round is committed
                self.folder.event("early stop", round=r, metric=metric, value=result.row[metric])

    def seconds_left(self) -> float:
        """Return the least time that the rest of the run takes, by its quickest round; 0 while only one-off work was seen."""
        left = self.config.rounds - self.prepared.reached
        return left * self._quickest if self._quickest < math.inf else 0.0

    def _note_scores(self, result: RoundResult) -> None:
        """Write into the folder's events what a committed round could not score; once, that the run fell apart, or reads `rounds`."""
        run = self.prepared
        events = [("not scored", {"round": result.round, **missing._asdict()}) for missing in result.unscored]
        if run.collapsed is None and result.row.get(collapse.METRIC) is not None:
            run.scored.append({"round": result.round, collapse.METRIC: result.row[collapse.METRIC]})
            run.collapsed = collapse.find(run.scored, self._chance)
            if run.collapsed is not None:
                events.append(("fell apart", run.collapsed.to_dict()))
        if run.fed.read_rounds and not run.reads_rounds:
            run.reads_rounds = True
            events.append((READS_ROUNDS, {"round": result.round}))
        self.status["collapsed"] = run.collapsed.round if run.collapsed else None
        with suppress(RunFailed):  # the round is committed
            for kind, fields in events:
                self.folder.event(kind, **fields)

    def _check_state(self, state: Tree, r: int) -> None:
        """Raise RunFailed where a new server state is not what was declared, or not finite."""
        missing = sorted(set(state) ^ set(self.prepared.method.wire.server))
        if missing:
            raise FailsAgain(f"round {r}: the new server state and `wire.server` differ in {missing}")
        if sums_are_finite([state]):
            return
        floats = [(path, x) for path, x in tree.leaves(state) if x.is_floating_point()]
        bad = ["/".join(path) for path, x in floats if not bool(torch.isfinite(x).all())]
        if bad:
            error = FailsAgain(
                f"round {r}: the new server state has NaN or infinity in {', '.join(bad[:3])}; the state of round {r - 1} is kept"
            )
            error.diverged, error.certain = r, True
            raise error

    def _stops_early(self, values: list[float]) -> bool:
        """Return whether the last of the values of `stop.metric` ends the run."""
        stop = self.config.stop
        if not (values and stop.metric):
            return False
        if stop.at is not None and (values[-1] <= stop.at if lower_is_better(stop.metric) else values[-1] >= stop.at):
            return True
        return stop.patience is not None and is_over(values, stop.metric, stop.patience, stop.min_change)

    def _keep_best(self, result: RoundResult) -> None:
        """Write the models of a round that is the best so far, before it is committed. RunFailed if the disk does not take them."""
        run = self.prepared
        if run.best:
            with self.folder.unlocked(f"write the models of round {result.round}"):
                run.best.take(result.round, result.row, lambda where: self._save_models(where, result.state))

    # -- the live status -----------------------------------------------------------------------------------------------

    def _publish(self, r: int, row: dict[str, Any]) -> None:
        """Make a committed round the live status."""
        spent, self._active = time.perf_counter() - self._began, time.monotonic()
        for gone in ("waiting", "phase"):
            self.status.pop(gone, None)
        self._paced = self._paced or (r, spent)  # the first round also pays for what happens once
        since, before = self._paced
        pace = (spent - before) / (r - since) if r > since else spent / max(1, r - self.prepared.first)
        left = pace * (self.config.rounds - r)
        known = {**self.status.get("metrics", {}), **{n: v for n, v in row.items() if "/" in n and v is not None}}
        self.status.update(
            status=RunStatus.RUNNING, round=r, rounds=self.config.rounds, metrics=known, clients_per_s=row["clients/per_second"],
            bytes=self.status.get("bytes", 0) + row["bytes/up"] + row["bytes/down"], eta_s=left, visits=0,
        )  # fmt: skip
        self._write_status()

    def _write_status(self) -> None:
        """Report the live status; into its file not more often than someone would read it."""
        if self.status["status"] != RunStatus.RUNNING or time.perf_counter() > self._status_written + LIVE_S:
            self._status_written = time.perf_counter()
            try:
                self.folder.state(**self.status)
            except RunFailed as error:  # what is committed stands
                self._give_up("the live status", error)
        self.progress(dict(self.status))

    # -- endings -------------------------------------------------------------------------------------------------------

    def _end_stopped(self) -> Ending:
        """End a run that was stopped from outside: no summary, the folder is free to be resumed."""
        reached = self.prepared.reached
        self.status["status"] = RunStatus.STOPPED
        self.folder.event("stopped", round=reached)
        self._write_status()
        self.folder.close()
        return Ending(RunStatus.STOPPED, reached)

    def _end_done(self) -> Ending:
        """End a run that is over: its models, its summary."""
        run, config = self.prepared, self.config
        notes = notes_on_scores(self.folder, self.federation, run.reached, run.collapsed, config.stop.metric)
        notes += self.federation.notes
        notes += [sample] if (sample := run.evaluator.sample()) else []
        if run.method.universal is None and run.task.pooled:
            measured = " and ".join(f"{n}/global" for n in sorted(run.task.row_measures)[:2])
            notes.append(
                f"{measured} score the size-weighted mean of the served models' predictions: the method has no single model"
            )
            notes += [run.task.mixture] if run.task.mixture else []
        chosen = Choice.in_effect(config, run.dispatch.cohort_size)
        repeat = REPEATABLE if config.resources.deterministic else chosen.as_options()
        notes += [f"to repeat: {repeat}", *self.sinks.notes, *self.notes]
        try:
            self._save_models(self.folder.path / "model", run.state)
            self._write_card()
        except (OSError, SafetensorError) as error:
            remove(self.folder.path / "model")
            text = os_error_text(error, self.folder.path) if isinstance(error, OSError) else str(error)
            self._give_up("the models", text, f"; write them with: rayfed resume {self.folder.path}")
        try:
            timeline.write(self.folder.path, run.dispatch.engine.get(timeline.NAME))
        except OSError as error:
            self._give_up("who worked when", os_error_text(error, self.folder.path))
        notes += self._given_up.values()
        self.status["status"] = RunStatus.DONE
        self.status.pop("waiting", None)
        summary = {
            "rounds": run.reached,
            "wall_s": run.seconds_before + time.perf_counter() - self._began,
            "method": config.method.name,
            "seed": config.seed,
            "executor": config.resources.executor,
            "notes": notes,
            "stopped_early": run.early,
            "collapsed": run.collapsed.to_dict() if run.collapsed else None,
            **self._sizes(),
            **self._measures(),
        }
        self._write_status()
        self.folder.finish(RunStatus.DONE, summary)
        return Ending(RunStatus.DONE, run.reached)

    def _sizes(self) -> dict[str, Any]:
        """Return how many parameters are trained, and how many the network has, where all clients have one."""
        task = self.prepared.task
        if task.families:
            return {}
        return {"parameters": {"trained": sum(p.numel() for p in task.params_like.values()), "all": task.size}}

    def _measures(self) -> dict[str, Any]:
        """Return what is measured, for the summary, where its readers do not know it from its names."""
        found = self.prepared.evaluator.measures()
        own = [m for m in found if READY_MEASURES.get(m.name) != m]
        return {"measures": [list(m) for m in own]} if own else {}

    def _give_up(self, what: str, reason: object, remedy: str = "") -> None:
        """Note, once, that something besides the rounds cannot be written, which ends no run."""
        if what not in self._given_up:
            self._given_up[what] = f"{what} could not be written: {reason}{remedy}"
            with suppress(RunFailed):
                self.folder.event("given up", text=self._given_up[what])

    def _save_models(self, where: Path, state: Tree) -> None:
        labels = self.federation.outputs
        exports.save_models(where, self.prepared.method, self.prepared.task, state, labels)

    def _write_card(self) -> None:
        """Write the card of a pretrained model that was trained further, next to it; one that cannot be written ends no run."""
        if not self.config.task.model.name.startswith("hf:"):
            return
        try:
            write_card(self.folder.path, self.folder.path / "model", self.prepared.task.kind, self.federation.outputs)
        except Exception as error:
            self._give_up("the model card", error)


def _refusals(method: Method, task: Task) -> dict[str, str]:
    """Return name -> why `vmap` cannot run it, of the visits of every family."""
    each = [visits.refusals(method, t) for t in task.families.values() or (task,)]
    return {name: reason for found in each for name, reason in found.items()}
