"""A run, round by round: the same program in a Ray actor and in the calling process. Knows no method by name."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed import keys, tree, visits
from rayfed.engine.client_states import collect_segments
from rayfed.engine.evaluation import Evaluation
from rayfed.engine.failures import ClientFailed
from rayfed.engine.messages import Job, TimingCall, Value
from rayfed.engine.resident import Resident
from rayfed.engine.worker import sums_are_finite
from rayfed.errors import RayfedError, RunFailed
from rayfed.execute.batches import pooled_pieces
from rayfed.execute.choice import Choice
from rayfed.execute.tuning import kernels
from rayfed.fed import Fed
from rayfed.lazy import torch
from rayfed.metrics import ari, lower_is_better, scope
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.tree_files import load_tree, save_tree
from rayfed.track import Sinks

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.engine.pool import Pool
    from rayfed.partition import Federation
    from rayfed.tree import Tree


LIVE_S = 0.2  # between two writings of state.json


class Ending(NamedTuple):
    """How a run ended: done | stopped, and after which round."""

    status: str
    round: int


class Runner:
    """Executes one run into its folder. `stop()` may be called from another thread; the round in hand still commits."""

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
        self.pool, self.folder, self.federation = pool, folder, federation
        self.progress = progress or (lambda state: None)
        self.before_commit = before_commit or (lambda: None)
        self._stop, self._told = False, -math.inf
        self.config = config
        self.noted: list[str] = []
        self.status: dict[str, Any] = {"run": folder.run_id, "status": "starting", "round": 0, "rounds": config.rounds}

    def stop(self) -> None:
        """Finish the round in hand, commit it with a snapshot, and end as `stopped`."""
        self._stop = True

    # -- the rounds ----------------------------------------------------------------------------------------------------

    def execute(self) -> Ending:
        """Start or continue the run. RunFailed says what broke and how to go on; the folder stays valid throughout."""
        self.prepare()
        self.advance(self.config.rounds)
        return self.finish()

    def prepare(self) -> None:
        """Make the run resident and go to its folder's last snapshot. Errors as in `execute`, here and in the next two."""
        self.active, self.early, self._saved = 0.0, False, True
        self.sinks = Sinks(self.config.track, self.folder.event)
        with self._at_work():
            self._prepare()
            self.sinks.open(self.folder.run_id, self.config.to_dict(), self.folder.path)
        self.reached = self.last

    def advance(self, to: int) -> int:
        """Rounds up to number `to`, which is committed with a snapshot; returns the last one. Fewer after `stop()` or an early
        stop."""
        self.to = min(to, self.config.rounds)
        with self._at_work():
            while self.reached < self.to and not self.early and not (self._stop and self._saved):
                self.reached = self._round(self.reached + 1)
        return self.reached

    def finish(self) -> Ending:
        """End the run: done, or stopped where rounds are left."""
        with self._at_work():
            over = self.early or self.reached >= self.config.rounds
            ending = self._end(self.reached) if over else self._stopped(self.reached)
        self.sinks.close(self.status["status"])
        return ending

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Time that counts as this run's; what breaks is told in the folder and closes the sinks."""
        began = time.perf_counter()
        try:
            self._began = began - self.active
            with kernels.using(kernels.from_resources(self.config.resources)):
                yield
        except BaseException as error:
            self.status["status"] = "failed"
            told: BaseException = error
            if isinstance(error, Exception) and not isinstance(error, RayfedError):  # a method's own, or ours
                told = RunFailed(f"{type(error).__name__}: {error}\n{traceback.format_exc().rstrip()}")
            self._failed(told)
            self.sinks.close(self.status["status"])
            if told is error:
                raise
            raise told from error
        finally:
            self.active += time.perf_counter() - began

    def _failed(self, error: BaseException) -> None:
        resume = f"The folder is valid up to its last snapshot; continue with: rayfed resume {self.folder.path}"
        if isinstance(error, ClientFailed):
            resume += (
                f"\nTo look at this client: rayfed resume {self.folder.path} --local --set resources.executor=debug"
            )
            if error.failure.arguments is not None:
                where = self.folder.path / "debug"
                where.mkdir(exist_ok=True)
                name = f"client-{error.client}-round-{error.round}"
                save_tree(where, name, error.failure.arguments)
                resume += f"\nWhat its code was given is in {where / name}.safetensors"
        if isinstance(error, RunFailed):
            error.hint = resume
        try:
            self.folder.event("failed", error=f"{type(error).__name__}: {error}")
            self.folder.state(**self.status)
            self.folder.close()
        except Exception:  # a full disk must not hide the first error
            pass

    def _prepare(self) -> None:
        start = start_from(self.config)
        res = Resident(self.config, self.federation, start, "cpu")
        self.method, self.task = res.method, res.task
        self.pool.setup(self.folder.run_id, self.config, self.federation, start)
        if self.config.resources.executor == "auto":
            self._choose_executor(start)
        if self.config.resources.visits == "server":
            res.config = self.config
            self.pool.adopt(self.folder.run_id, res)
        self.fed = Fed(self.config, self.federation, self.method, self.task, self.pool, self.folder.run_id)
        self.fed.watch, self.fed.note = self.status.update, self._note
        self.segments = self.folder.path / "segments"
        self.last, snapshot = self.folder.rewind()
        if snapshot is None:
            self.state = self.method.init(self.task, keys.key(self.config.seed, 0, -1, "init"))
        else:
            self.state = tree.from_numpy(load_tree(snapshot, "server"))
            self.fed.store.load(snapshot, self.segments)
            self.folder.event("resumed", round=self.last)
        self.before = self._spent(self.last)
        undeclared = sorted(set(self.state) ^ set(self.method.wire.server))
        if undeclared:
            raise RunFailed(f"the server state's parts and `wire.server` differ in {undeclared}")

    def _note(self, sentence: str) -> None:
        """What a worker's process has switched off, into the folder's events: once, however many processes say it."""
        if sentence not in self.noted:
            self.noted.append(sentence)
            self.folder.event("replay", reason=sentence)

    def _spent(self, r: int) -> float:
        """Seconds that the first r rounds took, whoever ran them."""
        rows = [row for row in self.folder.metrics().to_pylist() if row["round"] <= r] if r else []
        return sum(row.get(n) or 0.0 for row in rows for n in ("time/round", "time/evaluate"))

    def _choose_executor(self, start: Any) -> None:
        """`executor: auto` becomes `vmap` or `loop` once, by timing, and stays so for this run."""
        from rayfed.fed import cohort_size, together

        size = cohort_size(self.config, self.federation, self.method, self.task)
        about = [self.config.to_dict()[k] for k in ("task", "local", "resources")]
        same = json.dumps([*about, size], sort_keys=True, default=str)
        if same not in self.pool.timings:  # once per model and machine
            ((_, out),) = list(self.pool.execute([Job(self.folder.run_id, TimingCall(size))]))
            assert isinstance(out.result, Value)
            self.pool.timings[same] = out.result.value
            for sentence in out.result.notes:
                self._note(sentence)
        seconds = dict(self.pool.timings[same])
        chosen = "vmap" if seconds["vmap"] < 0.9 * seconds["loop"] else "loop"  # `loop` takes less memory
        for reason in visits.refusals(self.method, self.task).values():  # one decides for the whole method
            chosen, seconds["why"] = "loop", reason
        where = self.config.resources.visits
        short = together(self.config, self.federation, seconds[chosen])
        if short and self.config.resources.cohort == "auto":
            size = self.config.per_round()
        if where == "auto":
            where = "server" if short and size >= self.config.per_round() and self.pool.adopts else "actors"
        by = seconds.pop("kernels")[chosen]._asdict()
        choice = Choice(chosen, size, where, **by)
        self.config = choice.apply(self.config)
        self.folder.set_config(self.config.to_dict())
        self.folder.event(
            "executor",
            chosen=chosen,
            cohort=size,
            visits=where,
            seconds=seconds,
            kernels=by,
            repeat=choice.as_options(),
        )
        self.method.config = self.config
        self.pool.setup(self.folder.run_id, self.config, self.federation, start)

    def _round(self, r: int) -> int:
        c, fed, clock = self.config, self.fed, time.perf_counter()
        scored = r % c.evaluate.every == 0 or r == c.rounds
        fed.begin(r, score_local=scored)
        try:
            state = self.method.round(self.state, fed, self.task)
            self._check(state, r)
            seconds = time.perf_counter() - clock
            row: dict[str, Any] = {n: t / w for n, (t, w) in fed.logged.items()}
            rows = None
            if scored:
                measured, rows = self.evaluate(state)
                row |= measured
                row["time/evaluate"] = time.perf_counter() - clock - seconds
        except BaseException:
            fed.store.rollback()
            raise
        meter = fed.meter
        row |= {n: float(v) for n, v in meter.items() if n not in ("visits", "dropped")}
        row["ray/bytes"] = float(meter["ray/bytes/up"] + meter["ray/bytes/down"])
        row |= {"time/round": seconds, "clients/visits": meter["visits"], "clients/dropped": meter["dropped"]}
        row["clients/per_second"] = meter["visits"] / max(seconds, 1e-9)
        row["actors/restarts"] = self.pool.restarts
        early = self._reached(row)
        due = r % c.storage.snapshot_every == 0 or r == self.to or self._stop or early
        self.before_commit()
        self.folder.commit(r, row, rows, (lambda d: self._snapshot(d, state, r)) if due else None)
        fed.store.commit()
        if due:
            fed.store.saved_now()
            collect_segments(self.folder.path / "snapshots", self.segments)
        self.state, self.row, self._saved = state, row, due
        self.sinks.row(r, row)
        self._publish(r, row)
        if early:
            self.early = True
            self.folder.event("early stop", round=r, metric=c.stop.metric, value=row[str(c.stop.metric)])
        return r

    def _check(self, state: Tree, r: int) -> None:
        missing = sorted(set(state) ^ set(self.method.wire.server))
        if missing:
            raise RunFailed(f"round {r}: the new server state and `wire.server` differ in {missing}")
        if sums_are_finite([state]):
            return
        bad = [
            "/".join(p) for p, x in tree.leaves(state) if x.is_floating_point() and not bool(torch.isfinite(x).all())
        ]
        if bad:
            raise RunFailed(
                f"round {r}: the new server state has NaN or infinity in {', '.join(bad[:3])}; the state of round {r - 1} is kept"
            )

    def _reached(self, row: dict[str, Any]) -> bool:
        s = self.config.stop
        value = row.get(s.metric) if s.metric else None
        if value is None or s.at is None:
            return False
        return bool(value <= s.at if lower_is_better(s.metric) else value >= s.at)

    def _snapshot(self, where: Path, state: Tree, r: int) -> None:
        save_tree(where, "server", tree.to_numpy(state), sync=False)  # whoever staged the folder waits for the disk
        self.fed.store.save(where, self.segments, f"round-{r:06d}-{self.folder.fence}")

    def _publish(self, r: int, row: dict[str, Any]) -> None:
        spent = time.perf_counter() - self._began
        left = (spent / max(1, r - self.last)) * (self.config.rounds - r)
        known = {**self.status.get("metrics", {}), **{n: v for n, v in row.items() if "/" in n and v is not None}}
        self.status.update(
            status="running", round=r, rounds=self.config.rounds, metrics=known, clients_per_s=row["clients/per_second"],
            bytes=self.status.get("bytes", 0) + row["bytes/up"] + row["bytes/down"], eta_s=left, visits=0,
        )  # fmt: skip
        self._tell()

    def _stopped(self, r: int) -> Ending:
        """Stopped from outside: no summary, the folder is free to be resumed."""
        self.status["status"] = "stopped"
        self.folder.event("stopped", round=r)
        self._tell()
        self.folder.close()
        return Ending("stopped", r)

    def _end(self, r: int) -> Ending:
        notes = list(self.federation.notes)
        if self.method.universal is None:
            notes.append(
                "accuracy/global and loss/global score the size-weighted mean of the served models' predictions: "
                "the method has no single model"
            )
            notes += [self.task.mixture] if self.task.mixture else []
        notes += [
            f"to repeat: {Choice.in_effect(self.config, self.fed.size).as_options()}",
            *self.sinks.notes,
            *self.noted,
        ]
        self._save_models()
        self.status["status"] = "done"
        summary = {
            "rounds": r,
            "wall_s": self.before + time.perf_counter() - self._began,
            "method": self.config.method.name,
            "seed": self.config.seed,
        }
        summary |= {"executor": self.config.resources.executor, "notes": notes, "stopped_early": self.early}
        self._tell()
        self.folder.finish("done", summary)
        return Ending("done", r)

    def _tell(self) -> None:
        """The live status; into its file not more often than someone would look."""
        if self.status["status"] != "running" or time.perf_counter() > self._told + LIVE_S:
            self.folder.state(**self.status)
            self._told = time.perf_counter()
        self.progress(dict(self.status))

    def _save_models(self) -> None:
        where = self.folder.path / "model"
        where.mkdir(exist_ok=True)
        about = {"classes": self.task.classes, "input_shape": list(self.task.input_shape)}  # to build the module again
        if self.method.universal:
            save_tree(where, "model", tree.to_numpy(self.state[self.method.universal]), about)
            self.task.publish(self.state[self.method.universal], where)
        for k, expert in (self.method.experts(self.state) or {}).items():
            save_tree(where, f"expert-{k}", tree.to_numpy(expert), about)
            self.task.publish(expert, where / f"expert-{k}")

    # -- scores ----------------------------------------------------------------------------------------------------------

    def evaluate(self, state: Tree) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """All scopes that the method has: the round's numbers (NAME/SCOPE) and one row per scored client."""
        fed, m = self.fed, self.method
        scored = self._scored_clients()
        people = [c for c in scored if c < fed.population]
        serve = m.serve(state)
        mine = {c: m.mine(state, c) for c in scored}
        personal = self._ask(Evaluation.PERSONAL, scored, serve, mine)
        row = {**scope("personal", {c: s for c, s in personal.items() if c < fed.population})}
        row |= scope("unseen", {c: s for c, s in personal.items() if c >= fed.population})
        member = m.clusters(state)
        experts = m.experts(state)
        if member is not None and experts:
            ids = sorted(experts)
            have = [c for c in people if member.get(c) in experts]
            stacked = {"experts": tree.stack([experts[k] for k in ids])}
            row |= scope(
                "cluster",
                self._ask(
                    Evaluation.CLUSTER, have, stacked, {c: {"expert": torch.tensor(ids.index(member[c]))} for c in have}
                ),
            )
        if member is not None:
            row["clusters/count"] = len(set(member.values()))
            truth = {c: int(self.federation.group[c]) for c in member if self.federation.group[c] >= 0}
            if len(truth) > 1:
                row["clusters/ari"] = ari([truth[c] for c in truth], [member[c] for c in truth])
        if self.config.evaluate.finetune_epochs:
            row |= scope("local", self._ask(Evaluation.LOCAL, people, serve, mine))
        elif fed.local_scores:
            row |= scope("local", fed.local_scores)
        row |= self._global(state, serve, mine, people)
        return row, [self._client_row(c, personal[c], member) for c in sorted(personal)]

    def _client_row(self, c: int, s: dict[str, float], member: dict[int, int] | None) -> dict[str, Any]:
        n = s["n"]
        return {
            "client": c,
            "name": self.federation.names[c],
            "unseen": c >= self.fed.population,
            "group": int(self.federation.group[c]),
            "cluster": None if member is None or c not in member else int(member[c]),
            "examples": int(self.federation.class_counts[c].sum()),
            "test_examples": int(n),
            **{k: v / n if n else None for k, v in s.items() if k != "n"},
            "seconds": self.fed.seconds.get(c),
        }

    def _scored_clients(self) -> list[int]:
        want, n = self.config.evaluate.clients, len(self.federation.group)
        if want == "all":
            return list(range(n))
        count = want if isinstance(want, int) else max(1, math.ceil(want * n))
        rng = keys.numpy(self.fed.key("evaluated clients"))
        return sorted(rng.choice(n, min(count, n), replace=False).tolist())

    def _ask(self, what: Evaluation, ids: list[int], shared: Tree, mine: dict[int, Any]) -> dict[int, dict[str, float]]:
        """Sums of scores per client; clients with and without a `mine` are asked apart, their payloads differ."""
        out: dict[int, dict[str, float]] = {}
        for group in ([c for c in ids if mine.get(c)], [c for c in ids if not mine.get(c)]):
            if group:
                got = self.fed.ask(
                    what, group, shared=shared, mine={c: mine[c] for c in group} if mine.get(group[0]) else None
                )
                columns = {part: got.stacked(part).tolist() for part in ("n", *self.task.measures)} if got.ids else {}
                out.update({c: {k: v[i] for k, v in columns.items()} for i, c in enumerate(got.ids)})
        return out

    def _global(self, state: Tree, serve: Tree, mine: dict[int, Any], people: list[int]) -> dict[str, float]:
        pooled, fed = self.federation.pooled_test, self.fed
        if not len(pooled):
            return {}
        if self.method.universal:
            pieces = range(len(pooled_pieces(self.federation)))
            sums = self._ask(Evaluation.GLOBAL, list(pieces), {"model": state[self.method.universal]}, {})
            n = sum(s["n"] for s in sums.values())
            return {f"{k}/global": sum(s[k] for s in sums.values()) / n for k in self.task.measures}
        from rayfed.fold import mean

        total: Any = None
        weight = 0.0
        for group in ([c for c in people if mine.get(c)], [c for c in people if not mine.get(c)]):
            if group:
                got = fed.ask(
                    Evaluation.ENSEMBLE,
                    group,
                    shared=serve,
                    mine={c: mine[c] for c in group} if mine.get(group[0]) else None,
                    fold=mean("p"),
                )
                part = tree.scale(got.folded["p"], got.weight["p"])
                total, weight = part if total is None else tree.add(total, part), weight + got.weight["p"]
        if total is None:
            return {}
        probs = torch.cat([total[k] for k in sorted(total, key=int)]) / weight
        rows = {n: torch.as_tensor(np.asarray(a)[pooled]) for n, a in self.federation.arrays.items()}
        judged = self.task.judge_mean(probs, rows)
        return {f"{k}/global": float(v.mean()) for k, v in judged.items()}


def start_from(config: Config) -> dict[str, Any] | None:
    """What a run starts from, as NumPy arrays: `params` of `init.from` (a run folder, a folder with model.safetensors, a PEFT
    adapter, a client's of `Run.save_adapter`), and the frozen `base` of a pretrained model; each None where there is none."""
    from rayfed.models import pretrained

    base, params = pretrained.base(config), None
    if config.init.from_ is not None:
        path = Path(config.init.from_)
        folder = path / "model" if (path / "model").is_dir() else path
        whole = (folder / "model.safetensors").is_file()
        params = load_tree(folder, "model") if whole else pretrained.adapter_arrays(folder)
    return None if base is None and params is None else {"params": params, "base": base}
