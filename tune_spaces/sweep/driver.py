"""`rayfed sweep`: check everything, start Ray, let Tune run the trials, write what came out."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.placement import Node, Plan, Room, plan
from rayfed import track
from rayfed.config import user_code
from rayfed.errors import ConfigError, Interrupted, PlacementError, RunFailed, nearest
from rayfed.launch import start
from rayfed.launch.federations import Federations
from rayfed.metrics import lower_is_better
from rayfed.report.point_text import short_names
from rayfed.storage import object_store
from rayfed.storage.atomic import durable_write, json_bytes, read_json, read_yaml, yaml_bytes
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import new_folder, versions
from tune_spaces.sweep import points

if TYPE_CHECKING:
    from rayfed.config.schema import Config

SEARCHES, SCHEDULERS = ("grid", "random", "optuna"), ("none", "asha", "pbt")
SAMPLES = 10  # points where the search draws them and --samples does not say how many
DRAWN = 20  # points of a space without a grid that are tried on the config before anything starts
MOST = 10_000  # points of a grid
UPLOAD_S = 30.0  # between two commits of a sweep's own files to object storage
TUNE, DRIVER, FILE = "tune", "driver.json", "sweep.yaml"
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the rows are in our own files
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # see `_Stop`
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Options:
    """How to search. samples: points that are drawn; concurrent: trials at a time, None for as many as fit; seeds: of every
    point, () for the config's; metric: NAME/SCOPE that trials are judged by; reuse: trials follow each other in one process."""

    search: str | None = None
    samples: int | None = None
    scheduler: str = "none"
    seeds: tuple[int, ...] = ()
    metric: str = "accuracy/global"
    concurrent: int | None = None
    reuse: bool = True


@dataclass
class Sweep:
    """A checked request. points: all of them where they are known before the start; configs: of those, or of some draws."""

    names: tuple[str, ...]
    base: Config
    options: Options
    space: points.Space
    points: list[points.Point] | None
    configs: list[Config]
    sets: tuple[str, ...] = ()


def numbers(text: str | None) -> tuple[int, ...]:
    """`0,1,2` as numbers. ConfigError."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(f"--seeds: {text!r} found, allowed: whole numbers with commas between, like 0,1,2") from None


def prepare(
    names: Sequence[str],
    config: str | Path | Mapping[str, Any],
    options: Options,
    sets: Sequence[str] = (),
    arm: str | None = None,
) -> Sweep:
    """Read and check a request. ConfigError with all that is wrong: options, spaces, every point of the grid."""
    from rayfed.config.schema import Config
    from rayfed.launch.preflight import load_request

    problems: list[str] = []
    try:
        request = load_request(config, sets)
    except ConfigError as error:
        problems += error.problems
        _options(options, None, problems)
        raise ConfigError(problems) from None
    seeds = options.seeds
    if isinstance(request, Config):
        base = request
        if arm is not None:
            problems.append(f"--arm {arm}: {config} has no arms")
    else:
        seeds = seeds or request.seeds
        only = next(iter(request.arms)) if len(request.arms) == 1 else None
        chosen = arm or only
        if chosen not in request.arms:
            found = (
                f"--arm {arm}: unknown{nearest(arm, request.arms)}"
                if arm
                else f"{config} is a study: name the arm to sweep"
            )
            problems.append(f"{found}; --arm {' | '.join(request.arms)}")
        base = request.arms.get(chosen or "", request.base)
    options = replace(options, seeds=seeds or (base.seed,))
    space = points.load(names, base, problems, sets)
    options = replace(
        options, search=options.search or ("grid" if space.finite and options.scheduler != "pbt" else "random")
    )
    _options(options, space, problems)
    if options.scheduler == "pbt":
        points.changeable(space, problems)
    if problems:
        raise ConfigError(problems)
    known: list[points.Point] | None = None
    if options.search == "grid":
        size = 1
        for d in space.swept.values():
            size *= len(points.values(d) or [])
        if size > MOST:
            raise ConfigError(f"--search grid: {size:,} points; allowed: {MOST:,}. Take --search random --samples N")
        known = points.grid(space)
    elif options.search == "random":
        known = points.draw(space, options.samples or SAMPLES, base.seed)
    splits = Federations()

    def whole(c: Config) -> None:
        splits.of(c.model_copy(update={"seed": options.seeds[0]}))

    tried = known if known is not None else points.draw(space, DRAWN, base.seed)
    # Points on the same split one after the other: it is made once for all of them.
    tried = sorted(
        tried,
        key=lambda p: json.dumps({k: v for k, v in p.items() if k.startswith(("federation", "task"))}, default=str),
    )
    configs = points.check(base.to_dict(), space, tried, problems, whole)
    if problems:
        raise ConfigError(problems)
    return Sweep(tuple(names), base, options, space, known, configs, tuple(sets))


def _options(o: Options, space: points.Space | None, problems: list[str]) -> None:
    if o.search is not None and o.search not in SEARCHES:
        problems.append(f"--search: {o.search!r} found{nearest(o.search, SEARCHES)}, allowed: {', '.join(SEARCHES)}")
    if o.scheduler not in SCHEDULERS:
        hint = nearest(o.scheduler, SCHEDULERS)
        problems.append(f"--scheduler: {o.scheduler!r} found{hint}, allowed: {', '.join(SCHEDULERS)}")
    if len(set(o.seeds)) < len(o.seeds) or any(s < 0 for s in o.seeds):
        problems.append(f"--seeds: {','.join(map(str, o.seeds))} found, allowed: different whole numbers >= 0")
    for name, value in (("samples", o.samples), ("concurrent", o.concurrent)):
        if value is not None and value < 1:
            problems.append(f"--{name}: {value} found, allowed: a whole number >= 1")
    if not all(o.metric.partition("/")[::2]):
        problems.append(f"--metric: {o.metric!r} found, allowed: NAME/SCOPE, like accuracy/global")
    if o.search == "optuna" and importlib.util.find_spec("optuna") is None:
        problems.append("--search optuna: Optuna is not installed: pip install 'rayfed-engine[optuna]'")
    if o.scheduler == "pbt" and o.search == "optuna":
        problems.append("--scheduler pbt: it changes the points itself, allowed with it: --search random or grid")
    if space is None or not space.swept:
        return
    if o.search == "grid":
        if o.samples is not None:
            problems.append("--samples: a grid has every point once; for several runs of a point, take --seeds 0,1,2")
        for s, d in space.swept.items():
            if points.values(d) is None:
                problems.append(
                    f"--search grid: {s} ({space.where[s]}) is no list of values; take --search random or optuna"
                )


# -- placement ---------------------------------------------------------------------------------------------------------


def together(wanted: Plan, nodes: Sequence[Node]) -> int:
    """How many trials of this plan fit on the nodes at once."""
    rooms = [Room.of(n) for n in nodes]
    count = 0
    while count < 1000:
        for bundle in wanted.bundles():
            for i, room in enumerate(rooms):
                left = room.without(bundle.get("CPU", 0), bundle.get("GPU", 0))
                if left is not None:
                    rooms[i] = left
                    break
            else:
                return count
        count += 1
    return count


def trial_plan(configs: Sequence[Config], nodes: Sequence[Node], concurrent: int | None) -> tuple[Plan, int]:
    """(the plan that serves every point, trials at a time). PlacementError as `rayfed run`."""
    wanted = max((plan(c, nodes) for c in configs), key=lambda p: p.actors)
    if concurrent and all(c.resources.actors == "auto" for c in configs):
        while wanted.actors > 1 and together(wanted, nodes) < concurrent:
            wanted = replace(wanted, actors=wanted.actors - 1)
    fit = together(wanted, nodes)
    if not fit:
        raise PlacementError(
            f"resources: {wanted.actors} client actors of {wanted.cpus:g} CPU and {wanted.gpus:g} GPU do not fit together with a server "
            f"of {wanted.server_cpus:g} CPU and {wanted.server_gpus:g} GPU. Lower resources.actors or resources.server."
        )
    return wanted, concurrent or fit


def bundles(wanted: Plan, node: str | None = None) -> list[dict[str, float]]:
    """Of a trial: its own with the server's share first, as Tune wants it, then one per client actor. node: address of the
    one that the trial's process has to be on."""
    server = {k: v for k, v in (("CPU", wanted.server_cpus), ("GPU", wanted.server_gpus)) if v}
    server |= {f"node:{node}": 0.001} if node else {}
    return [server, *wanted.bundles()[: wanted.actors]]


# -- running -----------------------------------------------------------------------------------------------------------


def run(
    sweep: Sweep,
    *,
    out: str | Path | None = None,
    address: str | None = None,
    watch: Watch | None = None,
    command: str = "",
) -> start.Finished:
    """Run a checked sweep to its end. Errors as in `rayfed.errors`; what was committed stays."""
    where, uri = object_store.local(out or sweep.base.storage.path)
    wanted, at_once, ray_here = _connect(sweep, address)
    with ray_here:
        o = sweep.options
        content = {
            "command": command, "spaces": list(sweep.names), "sets": list(sweep.sets), "name": sweep.base.name,
            "options": {**asdict(o), "seeds": list(o.seeds)}, "mode": _mode(o.metric), "rounds": sweep.base.rounds,
            "trials": _count(sweep), "swept": {k: _told(d) for k, d in sweep.space.swept.items()}, "fixed": sweep.space.fixed,
            "points": sweep.points, "plan": asdict(wanted), "at_once": at_once, "config": sweep.base.to_dict(),
            "versions": versions(),
        }  # fmt: skip
        files = {
            FILE: yaml_bytes(content),
            DRIVER: json_bytes(asdict(Owner.me())),
            **user_code.written(sweep.base.to_dict()),
        }
        files |= {f"spaces/{i}.json": json_bytes([f, t]) for i, (f, t) in enumerate(sweep.space.texts.items())}
        run_id = os.environ.get(start.RUN_ID)
        path = new_folder(where.resolve(), f"{sweep.base.name}-sweep", files, run_id=run_id, stored=uri)
        return _go(sweep, path, wanted, at_once, watch or (lambda state: None), fresh=True)


def resume(path: str | Path, *, address: str | None = None, watch: Watch | None = None) -> start.Finished:
    """Continue a sweep: trials that were running go on at their runs' last snapshots, what had ended stays. `path`: its
    folder, or its URI in object storage."""
    from rayfed.config.schema import Config
    from rayfed.launch.preflight import load_request

    uri, path = str(path), Path(path)
    if object_store.is_uri(uri):
        path = object_store.cache() / path.name.partition("?")[0]
        _free(path)
        object_store.download(uri, path)
    if not (path / FILE).is_file():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() and not path.is_dir() else []
        raise ConfigError(
            f"--resume {path}: no sweep to resume here (its folder holds {FILE}){nearest(path.name, near)}"
        )
    path = path.resolve()
    _free(path)
    said = read_yaml(path / FILE)
    user_code.adopt(path)
    user_code.install({f: t.encode() for f, t in (json.loads(s.read_text()) for s in (path / "spaces").glob("*.json"))})
    base = load_request(said["config"])
    assert isinstance(base, Config)
    o = Options(**{**said["options"], "seeds": tuple(said["options"]["seeds"])})
    problems: list[str] = []
    space = points.load(said["spaces"], base, problems, said["sets"])
    _options(replace(o, samples=None), space, problems)
    known = said["points"]
    configs = points.check(
        base.to_dict(), space, known or points.draw(space, DRAWN, base.seed), problems, lambda c: None
    )
    if problems:
        raise ConfigError(problems)
    sweep = Sweep(tuple(said["spaces"]), base, o, space, known, configs, tuple(said["sets"]))
    wanted = Plan(**said["plan"])
    _, _, ray_here = _connect(sweep, address, wanted)
    with ray_here:
        durable_write(path / DRIVER, json_bytes(asdict(Owner.me())))
        return _go(sweep, path, wanted, int(said["at_once"]), watch or (lambda state: None), fresh=False)


def _free(path: Path) -> None:
    """ConfigError if another driver is, or may be, at work on a sweep."""
    found = read_json(path / DRIVER)
    owner = Owner(**found) if found else None
    if owner and owner != Owner.me() and owner.alive() and (owner.here() or os.environ.get("RAYFED_TAKE_OVER") != "1"):
        whose = (
            "which still runs; stop it first"
            if owner.here()
            else "which cannot be seen from here; if it is gone, set RAYFED_TAKE_OVER=1"
        )
        raise ConfigError(f"--resume {path}: the sweep belongs to {owner}, {whose}")


def _mode(metric: str) -> str:
    return "min" if lower_is_better(metric) else "max"


def _count(sweep: Sweep) -> int:
    return len(sweep.points) if sweep.points is not None else (sweep.options.samples or SAMPLES)


def _told(domain: Any) -> Any:
    """A domain as it is written down: its values, or Tune's words for it."""
    found = points.values(domain)
    if found is not None:
        return found
    bounds = [points.plain(b) for b in (domain.lower, domain.upper)] if hasattr(domain, "lower") else []
    return f"{type(domain).__name__.lower()} {type(domain.get_sampler()).__name__.strip('_').lower()} {bounds}".strip()


def _connect(sweep: Sweep, address: str | None, fixed: Plan | None = None) -> tuple[Plan, int, Any]:
    """(the plan of a trial, trials at a time, what ends Ray). What cannot be placed is refused before Ray starts, or, on a
    cluster, before a trial does."""
    from actors import driver, monitor
    from actors.placement import nodes_of

    more = {"TUNE_GLOBAL_CHECKPOINT_S": "1"} if sweep.options.search == "optuna" else {}  # its points are nowhere else
    os.environ.update({k: v for k, v in {**QUIET, **more}.items() if k not in os.environ})
    address = address or os.environ.get("RAY_ADDRESS") or "local"

    def fits(nodes: Sequence[Node]) -> tuple[Plan, int]:
        if fixed is None:
            return trial_plan(sweep.configs, nodes, sweep.options.concurrent)
        if not together(fixed, nodes):
            have = ", ".join(f"a node with {n.get('CPU', 0):g} CPU and {n.get('GPU', 0):g} GPU" for n in nodes)
            raise PlacementError(
                f"the sweep's trials were planned with {fixed.actors} client actors of {fixed.cpus:g} CPU and {fixed.gpus:g} GPU; "
                f"they do not fit on {have}"
            )
        return fixed, 0

    found = fits([driver.local_node()]) if address == "local" else None
    import ray

    driver._connect(address, monitor.job_metadata([sweep.base]))
    try:
        wanted, at_once = found or fits(nodes_of(ray.nodes()))
    except PlacementError:
        ray.shutdown()
        raise
    here = contextlib.ExitStack()
    here.callback(ray.shutdown)
    return wanted, at_once, here


def _desk(sweep: Sweep, path: Path, wanted: Plan) -> str:
    """Start the desk on this node; returns its name."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from tune_spaces.sweep.desk import Desk

    values = sweep.base.to_dict()
    request = {
        "path": str(path), "base": values, "fixed": sweep.space.fixed, "seeds": list(sweep.options.seeds),
        "metric": sweep.options.metric, "plan": asdict(wanted), "keep_all": sweep.options.scheduler == "pbt",
        "environment": track.environment(),
    }  # fmt: skip
    code = user_code.used([values, [c.to_dict() for c in sweep.configs]])
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    name = f"rayfed/{path.name}/desk"
    end = time.monotonic() + 60
    while True:
        try:
            made = ray.remote(Desk).options(name=name, num_cpus=0, scheduling_strategy=here)
            desk = made.remote(request, code, asdict(Owner.me()))
            ray.get(desk.request.remote())
            _KEPT[name] = desk
            return name
        except ValueError:  # that of a driver that was killed just now
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


_KEPT: dict[str, Any] = {}  # an actor ends with its last handle


class _Stop:
    """Asks Tune to end: it saves its state, and the trials stay as they are for `--resume`."""

    def stop(self) -> None:
        signal.raise_signal(signal.SIGUSR1)


def _go(sweep: Sweep, path: Path, wanted: Plan, at_once: int, watch: Watch, fresh: bool) -> start.Finished:
    import logging

    import ray
    from ray import tune

    from rayfed.report.sweep import write_sweep
    from tune_spaces.sweep import told
    from tune_spaces.sweep.trial import Trial

    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    desk = _desk(sweep, path, wanted)
    here = ray.util.get_node_ip_address() if (path / object_store.POINTER).is_file() else None  # whence all is uploaded
    trainable = tune.with_resources(Trial, tune.PlacementGroupFactory(bundles(wanted, here), strategy="PACK"))
    o, store = sweep.options, path / TUNE
    if o.scheduler == "pbt":  # its whole population takes turns
        at_once = 0
    if not fresh and tune.Tuner.can_restore(str(store)):
        tuner = tune.Tuner.restore(str(store), trainable=trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space={"point": _search_space(sweep), "desk": desk},
            tune_config=tune.TuneConfig(
                metric="score", mode=_mode(o.metric), num_samples=_count(sweep) if sweep.points is None else 1,
                search_alg=_searcher(sweep), scheduler=_scheduler(sweep), max_concurrent_trials=at_once or None,
                reuse_actors=o.reuse,
            ),
            run_config=tune.RunConfig(
                name=TUNE, storage_path=str(path), verbose=0, failure_config=tune.FailureConfig(max_failures=1),
                callbacks=[told.Told(short_names(sweep.space.swept), _count(sweep), o.metric, sweep.base.rounds)],
            ),
        )  # fmt: skip
    upload = _Upload(path)
    told.listeners[:] = [watch, upload]
    try:
        upload.now()
        with start._signals(_Stop()) as asked:  # type: ignore[arg-type]
            results = tuner.fit()
        _KEPT.pop(desk, None)
        _tidy(path, sweep.base.storage.keep)
        failed = [] if asked else [str(e) for e in results.errors]
        summary = write_sweep(path, ended=not asked, failed=len(failed))
    finally:
        durable_write(path / DRIVER, b"{}")
    upload.now(plain=True)
    again = f"rayfed sweep --resume {upload.uri or _shown(path)}"
    if asked:
        error = Interrupted(
            f"interrupted; the trials' runs are as they were at their last snapshots. Continue with: {again}"
        )
        error.exit_code = 128 + asked[0]
        raise error
    if failed:
        raise RunFailed(
            f"{len(failed)} of {_count(sweep)} trials failed; the first: {_first(path, failed)}\nTry them again with: {again}"
        )
    return start.Finished(path, summary["status"], summary)


class _Upload:
    """Commits a sweep's folder to object storage, if it is stored there; the runs in it commit themselves. Tune's and the
    trials' files change meanwhile: what is caught in the middle goes with the next time."""

    def __init__(self, path: Path):
        self.mirror, self.last = object_store.of(path), time.monotonic()
        self.uri = self.mirror.uri if self.mirror else None

    def __call__(self, state: dict[str, Any]) -> None:
        if self.mirror and time.monotonic() - self.last >= UPLOAD_S:
            with contextlib.suppress(RunFailed):
                self.now()

    def now(self, plain: bool = False) -> None:
        if self.mirror:
            self.mirror.push(0, plain=plain)
            self.last = time.monotonic()


def _shown(path: Path) -> str:
    """As one would type it here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _first(path: Path, errors: Sequence[str]) -> str:
    """Why the first failed trial did, as its run has written it down; else the last line of what Tune says."""
    for file in sorted((path / "trials").glob("**/events.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]
        told = [e for e in lines if e["kind"] in ("failed", "finished")]
        if told and told[-1]["kind"] == "failed":
            return f"{file.parent.relative_to(path)}: {str(told[-1]['error']).splitlines()[0]}"
    lines = errors[0].strip().splitlines()
    return next((line for line in lines if line.startswith("rayfed.errors.")), lines[-1])


def _search_space(sweep: Sweep) -> Any:
    from ray import tune

    if sweep.points is not None:
        return tune.grid_search(sweep.points)
    return {k: points.packed(d) for k, d in sweep.space.swept.items()}


def _searcher(sweep: Sweep) -> Any:
    if sweep.options.search != "optuna":
        return None
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(metric="score", mode=_mode(sweep.options.metric), seed=sweep.base.seed)


def _scheduler(sweep: Sweep) -> Any:
    from ray.tune import schedulers

    c = sweep.base
    period = c.evaluate.every
    if sweep.options.scheduler == "asha":
        return schedulers.ASHAScheduler(
            time_attr="round", max_t=c.rounds, grace_period=min(period, c.rounds), reduction_factor=3
        )
    if sweep.options.scheduler == "pbt":
        known = {k: points.values(d) for k, d in sweep.space.swept.items()}
        return schedulers.PopulationBasedTraining(
            time_attr="round",
            perturbation_interval=period,
            hyperparam_mutations={"point": {k: v if v is not None else sweep.space.swept[k] for k, v in known.items()}},
            custom_explore_fn=lambda config: {**config, "point": points.inside(config["point"], sweep.space)},
            log_config=False,
        )
    return None


def _tidy(path: Path, keep: int) -> None:
    """Snapshots that a clone might have needed go once no trial can be cloned any more."""
    from rayfed.engine.client_states import collect_segments
    from rayfed.storage import snapshots

    for folder in (path / "trials").glob("**/snapshots"):
        snapshots.prune(folder, keep)
        collect_segments(folder, folder.parent / "segments")


def command_line(argv: Sequence[str] | None = None) -> str:
    """The command as it was typed."""
    return " ".join(["rayfed", *map(shlex.quote, (sys.argv if argv is None else argv)[1:])])
