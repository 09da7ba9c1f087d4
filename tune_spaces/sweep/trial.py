"""A trial: one point of a sweep, its seeds as ordinary runs in lock-step on one pool of client actors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import ray
from ray import tune

from rayfed.config import user_code
from rayfed.errors import RunFailed, nearest
from rayfed.launch.start import has_ended
from rayfed.partition import split_key
from rayfed.report.point_text import point_text
from rayfed.storage import round_log
from rayfed.storage.atomic import durable_write, json_bytes, write_all
from rayfed.storage.sweep_folder import ROWS, read_rows
from tune_spaces.sweep import points

ABOUT, POINTER = "point.json", "pointer.json"


class Trial(tune.Trainable):
    """`step` is one evaluation period of every seed. What Tune keeps of it is a pointer: run folders snapshot themselves.

    Config: `point` (setting -> value) and `desk` (the name of the desk's actor). A trial that is started again first tells
    the rows that it has, then goes on in its own folder, at most an evaluation period back; runs that are done are left
    alone. One that is given another trial's pointer (PBT) clones its runs.
    """

    def setup(self, config: dict[str, Any]) -> None:
        import torch

        from actors.placement import Plan

        desk = ray.get_actor(config["desk"])
        self.desk: Any = desk
        self.request, code = ray.get(desk.request.remote())
        user_code.install(code)
        os.environ.update(self.request["environment"])
        self.plan = Plan(**self.request["plan"])
        torch.set_num_threads(self.plan.threads)
        self.home = Path(self.request["path"])
        if not (self.home / "sweep.yaml").is_file():
            raise RunFailed(
                f"{self.home} is not on this node ({ray.util.get_node_ip_address()}): on several nodes the sweep's folder must be shared "
                "(storage.path or --out)"
            )
        self.pool: Any = None
        self._splits: dict[str, Any] = {}
        self._take(config)

    def _take(self, config: dict[str, Any]) -> None:
        self.point = json.loads(json_bytes(points.unpacked(config["point"])))  # as it is read back
        self.runners: dict[int, Any] | None = None
        self.known: list[dict[str, Any]] | None = None  # rows of an earlier start that Tune has not been told
        self.pointer: dict[str, Any] | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Another trial in this process: the pool, its actors and what is resident in them stay."""
        self._leave()
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self.known is None:
            self.known = self._find()
        if self.known:
            row = self.known.pop(0)
            return self._told(row, over=not self.known and len(self.ended) == len(self.request["seeds"]))
        if self.runners is None:
            self.runners = self._open()
        config = self.config_here
        going = [r.reached for r in self.runners.values() if not r.early]
        reached = min(going, default=config.rounds)
        to = min((reached // config.evaluate.every + 1) * config.evaluate.every, config.rounds)
        for runner in self.runners.values():
            self.pool.on_restart = lambda folder=runner.folder, **about: folder.event("actor restarted", **about)
            runner.advance(to)
        row = self._row(max([r.reached for r in self.runners.values()], default=config.rounds))
        self._write([row])
        over = all(r.early or r.reached >= config.rounds for r in self.runners.values())
        if over:
            self._leave()
        return self._told(row, over)

    def _told(self, row: Mapping[str, Any], over: bool) -> dict[str, Any]:
        """A row as Tune is told it."""
        every = {m: _values(row, m) for m in _metrics(row)}
        mean = {m: fmean(v) for m, v in every.items() if all(map(math.isfinite, v))}
        metric = self.request["metric"]
        if metric not in mean:
            known = ", ".join(m for m in mean if m.partition("/")[0] in ("accuracy", "loss", "clusters"))
            found = "is not finite" if metric in every else f"was not measured{nearest(metric, mean)}; there is {known}"
            raise RunFailed(f"--metric {metric}: {found}")
        told = {"round": row["round"], "score": mean[metric], "values": every[metric]}
        return {**told, "of": self.config_here.rounds, "done": over}

    # -- folders -------------------------------------------------------------------------------------------------------

    @property
    def place(self) -> Path:
        """The trial's folder."""
        return self.home / "trials" / self.trial_id.rpartition("_")[2]

    def _find(self) -> list[dict[str, Any]]:
        """Look what there is of this trial: sets its folder, its origin and the seeds whose runs are done; returns its rows
        after what Tune remembers, of a trial that has ended at least the last."""
        self.config_here = points.config_of(self.request["base"], self.request["fixed"], self.point)
        self.origin = self._choose()
        self.ended = {s for s in self.request["seeds"] if has_ended(self.folder / f"seed-{s}", self.config_here.rounds)}
        whole = len(self.ended) == len(self.request["seeds"])
        if whole:
            self._catch_up({}, self.origin["round"] if self.origin else 0)
        here, after = str(self.folder.relative_to(self.home)), (self.pointer or {"round": 0})["round"]
        by_round = {row["round"]: row for row in read_rows(self.place) if row["folder"] == here}
        found = [by_round[r] for r in sorted(by_round)]
        due = [row for row in found if row["round"] > after]
        if self.request["keep_all"]:  # PBT would judge the past once more, and clone it
            due = []
        return due or (found[-1:] if whole else [])

    def _open(self) -> dict[int, Any]:
        """Runners of the seeds that have rounds left, at their last snapshots."""
        from rayfed.engine.failures import FailurePolicy
        from rayfed.engine.runner import Runner
        from rayfed.partition import Federation
        from rayfed.storage.run_folder import RunFolder

        config, origin = self.config_here, self.origin
        if self.request["keep_all"]:  # PBT may clone any of them
            config = config.model_copy(update={"storage": config.storage.model_copy(update={"keep": 10**6})})
        self._start_pool()
        self.pool.policy = FailurePolicy.of(config.failures)
        out: dict[int, Any] = {}
        for seed in self.request["seeds"]:
            if seed in self.ended:
                continue
            c = config.model_copy(update={"seed": seed, "name": f"{config.name}-{self.place.name}"})
            where, values = self.folder / f"seed-{seed}", c.to_dict()
            if origin and not (where / "config.yaml").exists():
                source = self.home / origin["folder"] / f"seed-{seed}"
                asked = self.desk.clone.remote(str(source), origin["round"], str(where), values)
            else:
                asked = self.desk.folder.remote(str(where), values)
            folder = RunFolder.attach(where, _get(asked))
            if folder.fence > 1 or origin:  # what was chosen by timing stays chosen
                chosen = folder.config["resources"]
                c = c.with_resources(executor=chosen["executor"], cohort=chosen["cohort"])
            folder.event("placed", server=os.getpid(), clients=self.pool.about(), trial=self.trial_id)
            key = split_key(values)
            if key not in self._splits:
                while len(self._splits) >= 2 * len(self.request["seeds"]):
                    del self._splits[next(iter(self._splits))]
                (ref,) = _get(self.desk.split.remote(values))
                self._splits[key] = Federation.from_numpy(ray.get(ref))
            out[seed] = Runner(c, self._splits[key], self.pool, folder)
        for runner in out.values():
            runner.prepare()
        if origin:
            self._same_state(origin, out)
        about = {"trial": self.place.name, "point": self.point, "origin": origin}
        durable_write(self.folder / ABOUT, json_bytes(about))
        self._catch_up(out, origin["round"] if origin else 0)
        return out

    def _start_pool(self) -> None:
        from actors.monitor import RayMetrics
        from actors.pool import RayPool
        from rayfed.track import prometheus

        if self.pool is not None:
            return
        group = ray.util.get_current_placement_group()  # Tune made it for this trial
        name = f"rayfed/{self.home.name}/{self.trial_id}-{os.getpid()}"
        first = group.bundle_count - self.plan.actors
        self.pool = RayPool(self.plan, group, name, first=first, keep=max(4, len(self.request["seeds"])))
        prometheus.set_exporter(lambda labels: RayMetrics(labels, self.pool))

    def _choose(self) -> dict[str, Any] | None:
        """Set `folder`, where the runs are or will be; returns what they are a clone of."""
        self.place.mkdir(parents=True, exist_ok=True)
        mine = str(self.place.relative_to(self.home))
        known = {f.parent: json.loads(f.read_text()) for f in [*self.place.glob(ABOUT), *self.place.glob(f"*/{ABOUT}")]}
        if self.pointer and (self.pointer["folder"] == mine or self.pointer["folder"].startswith(f"{mine}/")):
            self.folder = self.home / self.pointer["folder"]
            return known[self.folder]["origin"]
        if self.pointer:
            same = [f for f, about in known.items() if about["origin"] == self.pointer and about["point"] == self.point]
            number = 1 + len(list(self.place.glob("clone-*")))
            self.folder = same[0] if same else self.place / f"clone-{number}"
            self.folder.mkdir(exist_ok=True)
            return self.pointer
        self.folder = self.place
        if self.folder in known and known[self.folder]["point"] != self.point:
            raise RunFailed(f"{self.folder} holds another point of an earlier start; move it away")
        return None

    def _same_state(self, origin: Mapping[str, Any], runners: Mapping[int, Any]) -> None:
        """A run goes on under other settings only if its server's state keeps its form."""
        from rayfed import keys, tree

        for runner in runners.values():
            fresh = runner.method.init(runner.task, keys.key(runner.config.seed, 0, -1, "init"))
            shapes = {p: tuple(x.shape) for p, x in tree.leaves(fresh)}
            here = {p: tuple(x.shape) for p, x in tree.leaves(runner.state)}
            other = ["/".join(map(str, p)) for p, s in shapes.items() if p in here and here[p] != s]
            if other:
                raise RunFailed(
                    f"a clone of {origin['folder']} cannot go on with {point_text(self.point)}: the method's state "
                    f"then has another form ({', '.join(other[:3])}); sweep such a setting without --scheduler pbt"
                )

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _row(self, r: int) -> dict[str, Any]:
        """What the seeds' runs say of round r; a run that stopped early says its last."""
        seeds = {}
        for seed in self.request["seeds"]:
            found = round_log.read(self.folder / f"seed-{seed}")
            row = found[min(r, max(found))]
            seeds[str(seed)] = {k: v for k, v in row.items() if k != "round" and v is not None}
        where = str(self.folder.relative_to(self.home))
        return {"trial": self.place.name, "round": r, "folder": where, "point": self.point, "seeds": seeds}

    def _catch_up(self, runners: Mapping[int, Any], after: int) -> None:
        """Rows of rounds that were committed, but not yet written when the trial was killed."""
        last = min([r.reached for r in runners.values()], default=self.config_here.rounds)
        here = str(self.folder.relative_to(self.home))
        told = {row["round"] for row in read_rows(self.place) if row["folder"] == here}
        found = max((round_log.read(self.folder / f"seed-{s}") for s in self.request["seeds"]), key=len)
        metric = self.request["metric"]
        due = [r for r, row in found.items() if after < r <= last and r not in told and row.get(metric) is not None]
        self._write([self._row(r) for r in due])

    def _write(self, new: list[dict[str, Any]]) -> None:
        fd = os.open(self.place / ROWS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            for row in new:
                write_all(fd, b"\n" + json_bytes(row))  # behind a torn line, if there is one
            os.fsync(fd)
        finally:
            os.close(fd)

    # -- Tune's side ---------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A pointer to the runs at their round; each has a snapshot there."""
        pointer = self.pointer
        if self.runners:
            reached = min(r.reached for r in self.runners.values())
            pointer = {"folder": str(self.folder.relative_to(self.home)), "round": reached}
        if pointer:
            (Path(checkpoint_dir) / POINTER).write_text(json.dumps(pointer))

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        file = Path(checkpoint_dir) / POINTER
        self.pointer = json.loads(file.read_text()) if file.is_file() else None

    def _leave(self) -> None:
        """End the runs in hand: done, or stopped and ready to be resumed."""
        if self.runners:
            for runner in self.runners.values():
                if runner.status["status"] not in ("done", "failed"):
                    runner.finish()

    def cleanup(self) -> None:
        try:
            self._leave()
        finally:
            if self.pool is not None:
                self.pool.close()


def _get(ref: Any) -> Any:
    """The desk's answer; errors as they were raised there."""
    from ray.exceptions import RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise (cause if isinstance(cause, Exception) else error) from None


def _metrics(row: Mapping[str, Any]) -> list[str]:
    """Names that every seed has."""
    first, *others = row["seeds"].values()
    return [m for m in first if all(m in o for o in others)]


def _values(row: Mapping[str, Any], metric: str) -> list[float]:
    return [float(s[metric]) for s in row["seeds"].values()]
