"""A trial: one point of a sweep, its seeds as ordinary runs in lock-step on one pool of client actors."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from rayfed.config import user_code
from rayfed.engine.failures import NOT_FINITE
from rayfed.errors import RunFailed, nearest
from rayfed.execute.choice import Choice
from rayfed.partition import split_key
from rayfed.report.point_text import point_text
from rayfed.storage.run_status import RunStatus
from rayfed.storage.sweep_folder import Outcome
from rayfed.storage.text_files import json_bytes, read_yaml
from tune_spaces.sweep.domains import unpack_point
from tune_spaces.sweep.folder import SETTINGS
from tune_spaces.sweep.messages import TrialPointer, TrialReport, TrialRequest, TrialRow
from tune_spaces.sweep.points import config_at
from tune_spaces.sweep.trial_folder import TrialFolder

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.engine.runner import Runner
    from rayfed.partition import Federation

POINTER = "pointer.json"
ALL_SNAPSHOTS = 10**6
WORST = 1e30  # score of what diverged: finite, for schedulers interpolate between scores


class SweepTrial(tune.Trainable):
    """`step` is one evaluation period of every seed. What Tune keeps of it is a pointer: run folders snapshot themselves.

    Config: `point` (setting -> value) and `broker` (the name of the data broker's actor). A trial that is started again first
    reports the rows that it has, then continues in its own folder, at most an evaluation period back; runs that are done are
    left alone. One that is given another trial's pointer (PBT) clones its runs.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Get ready for the first trial of this process; Tune calls this."""
        import torch

        self.broker: Any = ray.get_actor(config["broker"])
        self.request: TrialRequest = ray.get(self.broker.request.remote())
        user_code.install(self.request.code)
        os.environ.update(self.request.environment)
        torch.set_num_threads(self.request.plan.threads)
        self.home = Path(self.request.home)
        if not (self.home / SETTINGS).is_file():
            raise RunFailed(
                f"{self.home} is not on this node ({ray.util.get_node_ip_address()}): on several nodes the sweep's folder must be shared "
                "(storage.path or --out)"
            )
        self.pool: Any = None
        self._splits: dict[str, Federation] = {}
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        """Take a trial, whose folder is opened with its first step."""
        self.point = json.loads(json_bytes(unpack_point(config["point"])))  # as it is read back
        self.folder: TrialFolder | None = None
        self.runners: dict[int, Runner] | None = None
        self.unreported: list[TrialRow] = []  # rows of an earlier start that Tune does not know
        self.pointer: TrialPointer | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial in this process: the pool, its actors and what is resident in them stay. Tune calls this."""
        self._end_runs()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Report the next round: one of an earlier start that Tune does not know, or the next evaluated one. Tune calls this.

        A trial that diverges has ended, with the worst of scores. RunFailed and whatever else its runs raise are noted in its folder.
        """
        folder = TrialFolder(self.home, self.trial_id.rpartition("_")[2])
        known = folder.outcome()
        if known and known.diverged is not None:  # tried once, whatever Tune knows of it
            self.config_here = config_at(self.request.base, self.request.fixed, self.point)
            return self._report_diverged(known.diverged)
        if known and known.certain and known.session == self.request.session:  # Tune tries once more
            raise RunFailed(known.reason)
        try:
            return self._step()
        except Exception as error:
            diverged = getattr(error, "diverged", None)
            seed = next((s for s, r in (self.runners or {}).items() if r.status["status"] == RunStatus.FAILED), None)
            certain, reason = (
                getattr(error, "certain", False),
                str(error).strip().splitlines() or [type(error).__name__],
            )
            folder.write_outcome(Outcome(reason[0], seed, diverged, certain, self.request.session))
            if diverged is None:
                raise
            self._end_runs()
            self.runners = None
            return self._report_diverged(diverged)

    def _step(self) -> dict[str, Any]:
        if self.folder is None:
            self.folder = self._open_folder()
            self.folder.write_outcome(None)
        if self.unreported:
            row = self.unreported.pop(0)
            return self._report(row, done=not self.unreported and self._complete)
        if self.runners is None:
            self.runners = self._open_runs(self.folder)
        config = self.config_here
        going = [r.prepared.reached for r in self.runners.values() if not r.prepared.early]
        reached = min(going, default=config.rounds)
        to = min((reached // config.evaluate.every + 1) * config.evaluate.every, config.rounds)
        for runner in self.runners.values():
            self.pool.on_restart = lambda folder=runner.folder, **about: folder.event("actor restarted", **about)
            runner.advance(to)
        reached = max([r.prepared.reached for r in self.runners.values()], default=config.rounds)
        row = self.folder.make_row(reached, self.point, self.request.seeds)
        self.folder.write_rows([row])
        done = all(r.prepared.early or r.prepared.reached >= config.rounds for r in self.runners.values())
        if done:
            self._end_runs()
        return self._report(row, done)

    def _report_diverged(self, round: int) -> dict[str, Any]:
        """Return the report of a trial that diverged in a round."""
        score = WORST if self.request.mode == "min" else -WORST
        return TrialReport(round, self.config_here.rounds, score, [], done=True, diverged=True).to_tune()

    def _report(self, row: TrialRow, done: bool) -> dict[str, Any]:
        """Return a row as Tune takes it. Raises RunFailed where the metric was not measured, or is not finite."""
        values = {m: row.values(m) for m in row.metrics()}
        mean = {m: fmean(v) for m, v in values.items() if all(map(math.isfinite, v))}
        metric = self.request.metric
        if metric not in mean:
            known = ", ".join(m for m in mean if m.partition("/")[0] in ("accuracy", "loss", "clusters"))
            null = self.folder.why_null(row.round, metric, self.request.seeds) if self.folder else ""
            found = f"was not measured{nearest(metric, mean)}; there is {known}"
            if metric in values or null:
                found = f"has no value ({null})" if null else "is not finite"
            error = RunFailed(f"--metric {metric}: {found} in round {row.round}")
            error.certain = True
            error.diverged = row.round if metric in values or NOT_FINITE in null else None
            raise error
        return TrialReport(row.round, self.config_here.rounds, mean[metric], values[metric], done).to_tune()

    # -- runs ----------------------------------------------------------------------------------------------------------

    @property
    def _complete(self) -> bool:
        """Whether the runs of all seeds were done when the folder was opened."""
        return len(self.ended) == len(self.request.seeds)

    def _open_folder(self) -> TrialFolder:
        """Find what there is of this trial: sets its config, the seeds whose runs are done, and the rows that Tune does not
        know; of a trial that has ended that is at least the last."""
        request, folder = self.request, TrialFolder(self.home, self.trial_id.rpartition("_")[2])
        self.config_here = config_at(request.base, request.fixed, self.point)
        folder.find_runs(self.point, self.pointer)
        self.ended = folder.ended_seeds(request.seeds, self.config_here.rounds)
        if self._complete:
            folder.write_missing_rows(self.config_here.rounds, self.point, request.seeds, request.metric)
        rows, after = folder.rows(), self.pointer.round if self.pointer else 0
        # PBT would judge the past once more, and clone it.
        self.unreported = [] if request.keep_snapshots else [row for row in rows if row.round > after]
        if self._complete and not self.unreported:
            self.unreported = rows[-1:]
        return folder

    def _open_runs(self, folder: TrialFolder) -> dict[int, Runner]:
        """Return runners of the seeds that have rounds left, at their last snapshots."""
        from rayfed.engine.failures import FailurePolicy

        config = self.config_here
        if self.request.keep_snapshots:
            kept = {"keep": ALL_SNAPSHOTS}  # each of them, so no more than are asked for: one per report
            if config.storage.snapshot_every == "auto":
                kept["snapshot_every"] = config.evaluate.every
            config = config.model_copy(update={"storage": config.storage.model_copy(update=kept)})
        folder.write_record(self.point)
        self._start_pool()
        self.pool.policy = FailurePolicy.of(config.failures)
        out = {s: self._open_run(folder, config, s) for s in self.request.seeds if s not in self.ended}
        for runner in out.values():
            runner.prepare()
            if folder.origin:
                self._check_state_form(folder.origin, runner)
        reached = min([r.prepared.reached for r in out.values()], default=self.config_here.rounds)
        folder.write_missing_rows(reached, self.point, self.request.seeds, self.request.metric)
        return out

    def _open_run(self, folder: TrialFolder, config: Config, seed: int) -> Runner:
        """Make a seed's run folder, clone it from its origin, or take it over; return its runner."""
        from rayfed.engine.runner import Runner
        from rayfed.storage.run_folder import RunFolder

        c = config.model_copy(update={"seed": seed, "name": f"{config.name}-{folder.name}"})
        where, origin = folder.run_folder(seed), folder.origin
        begun = (where / "config.yaml").exists()
        source = folder.origin_run(seed) if origin and not begun else None
        if begun or source:  # what was chosen by timing stays chosen
            c = Choice.from_config(read_yaml((source or where) / "config.yaml")).apply(c)
        values = c.to_dict()
        if source and origin:
            fence = self.broker.clone_folder.remote(str(source), origin.round, str(where), values)
        else:
            fence = self.broker.open_folder.remote(str(where), values)
        run = RunFolder.attach(where, _get(fence))
        located = [asdict(a) for a in self.pool.locate_actors()]
        run.event("placed", server=os.getpid(), clients=located, trial=self.trial_id)
        return Runner(c, self._split(values), self.pool, run)

    def _split(self, config: dict[str, Any]) -> Federation:
        """Return the data split of a config, given as plain values; the newest are kept in this process."""
        from rayfed.partition import Federation

        key = split_key(config)
        if key not in self._splits:
            while len(self._splits) >= 2 * len(self.request.seeds):
                del self._splits[next(iter(self._splits))]
            (ref,) = _get(self.broker.split.remote(config))
            self._splits[key] = Federation.from_numpy(ray.get(ref))
        return self._splits[key]

    def _start_pool(self) -> None:
        """Start the client actors in the placement group that Tune made for this trial, once per process."""
        from actors.pool import RayPool

        if self.pool is not None:
            return
        group = ray.util.get_current_placement_group()
        name = f"rayfed/{self.home.name}/{self.trial_id}-{os.getpid()}"
        first = group.bundle_count - self.request.plan.actors
        keep = max(4, len(self.request.seeds))
        self.pool = RayPool(self.request.plan, group, name, first=first, keep=keep)

    def _check_state_form(self, origin: TrialPointer, runner: Runner) -> None:
        """Raise RunFailed where a clone's settings give its server's state another form than that of the run it continues."""
        from rayfed import keys, tree

        fresh = runner.prepared.method.init(runner.prepared.task, keys.key(runner.config.seed, 0, -1, "init"))
        shapes = {p: tuple(x.shape) for p, x in tree.leaves(fresh)}
        here = {p: tuple(x.shape) for p, x in tree.leaves(runner.prepared.state)}
        other = ["/".join(map(str, p)) for p, s in shapes.items() if p in here and here[p] != s]
        if other:
            raise RunFailed(
                f"a clone of {origin.folder} cannot go on with {point_text(self.point)}: the method's state "
                f"then has another form ({', '.join(other[:3])}); sweep such a setting without --scheduler pbt"
            )

    def _end_runs(self) -> None:
        """End the current runs: done, or stopped and ready to be resumed."""
        for runner in (self.runners or {}).values():
            if runner.status["status"] not in (RunStatus.DONE, RunStatus.FAILED):
                runner.finish()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write a pointer to the runs at their round; each has a snapshot there. Tune calls this."""
        pointer = self.pointer
        if self.runners and self.folder is not None:
            pointer = TrialPointer(self.folder.relative, min(r.prepared.reached for r in self.runners.values()))
        if pointer:
            (Path(checkpoint_dir) / POINTER).write_text(json.dumps(asdict(pointer)), encoding="utf-8")

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Read the pointer that the trial continues from. Tune calls this."""
        file = Path(checkpoint_dir) / POINTER
        self.pointer = TrialPointer(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def cleanup(self) -> None:
        """End the current runs and the pool. Tune calls this."""
        try:
            self._end_runs()
        finally:
            if self.pool is not None:
                self.pool.close()


def _get(ref: Any) -> Any:
    """Return the data broker's answer. Raises its errors as they were raised there."""
    from ray.exceptions import RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise (cause if isinstance(cause, Exception) else error) from None
