"""From a request (a run or a study) to finished folders: what execution on Ray and in this process have in common."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rayfed import methods, report, schedules
from rayfed.config import user_code
from rayfed.config.schema import Config
from rayfed.errors import ConfigError, RayfedError, nearest
from rayfed.execute.choice import Choice
from rayfed.launch.federations import Federations
from rayfed.launch.origin import RESUMABLE, Changes, code_digests
from rayfed.launch.preflight import load_request
from rayfed.launch.signals import stop_on_signals, stopped_error
from rayfed.storage import object_store, provenance, round_log
from rayfed.storage.atomic import durable_write, os_error_text
from rayfed.storage.events import READS_ROUNDS, read_events
from rayfed.storage.new_folder import new_folder
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder, find_damage
from rayfed.storage.run_status import RunStatus
from rayfed.storage.text_files import load_json, read_json, read_yaml, yaml_bytes

if TYPE_CHECKING:
    from rayfed.config.schema import Study
    from rayfed.engine.runner import Ending
    from rayfed.partition import Federation

Watch = Callable[[dict[str, Any]], Any]  # is called with the live status; True stops the run after its round
T = TypeVar("T")
HEAD_START = 0.25  # seconds in which most errors of a request are found
RUN_ID = "RAYFED_RUN_ID"  # environment variable: the folder's name, chosen by whoever started the command


class Launcher(Protocol):
    """Executes prepared runs, on Ray or in this process."""

    def warm_up(self, configs: Sequence[Config]) -> None:
        """Begin with what takes long while the data is still being split. PlacementError as in `start`."""

    def start(self, configs: Sequence[Config]) -> None:
        """Get ready for these runs. PlacementError if they cannot be placed."""

    def execute(self, config: Config, federation: Federation, folder: RunFolder, watch: Watch) -> Ending:
        """Run one config into its folder, to its end or until it is stopped, and return how it ended."""

    def stop(self) -> None:
        """Ask the current run to stop after committing its round; may be called from a signal handler."""

    def status(self) -> Mapping[str, Any]:
        """Return the newest live status; {} before there is one."""

    def close(self) -> None:
        """Release what `start` took. May be called again."""


@dataclass
class Finished:
    """A run's or a study's folder, how it ended, its summary.json, and sentences for what else could not be written."""

    path: Path
    status: str
    summary: dict[str, Any]
    given_up: list[str] = field(default_factory=list)


# -- requests ----------------------------------------------------------------------------------------------------------


def start_request(
    request: Config | Study,
    launcher: Launcher,
    *,
    out: str | Path | None = None,
    watch: Watch | None = None,
    reports: bool = True,
) -> Finished:
    """Run a config, or every arm and seed of a study, to its end.

    out: folder of the run folder, or a URI, instead of `storage.path`; reports: whether a study writes report.html of itself and of
    its runs. Errors as in `rayfed.errors`; what was committed stays.
    """
    watch, federations = watch or (lambda state: None), Federations()
    base = request if isinstance(request, Config) else request.base
    path, uri = object_store.local_folder(out or base.storage.path)
    where: dict[str, Any] = {"stored": uri, "run_id": os.environ.get(RUN_ID)}
    if isinstance(request, Config):
        federation, split = _split_and_warm_up(launcher, [request], lambda: federations.checked(request))
        launcher.start([request])
        values = request.to_dict()
        folder = RunFolder.create(path, values, owner=Owner.me(), split=split, code=code_digests(values), **where)
        return _execute_run(request, federation, folder, launcher, watch)
    configs = [c for _, _, c in request.runs()]
    split = _split_and_warm_up(launcher, configs, lambda: federations.check(request))
    launcher.start(configs)
    values, text = request.to_dict(), yaml_bytes(request.to_dict())
    made = provenance.Provenance("study.yaml", text.decode(), split=split, code=code_digests(values))
    files = {"study.yaml": text, provenance.FILE: made.to_bytes(), **user_code.written(values)}
    path = new_folder(path, request.base.name, files, **where)
    return _execute_study(request, path, federations, launcher, watch, reports=reports)


def resume_request(
    path: str | Path,
    launcher: Launcher,
    *,
    sets: Sequence[str] = (),
    accept_changes: bool = False,
    watch: Watch | None = None,
    reports: bool = True,
) -> Finished:
    """Continue a run or a study from its last snapshot to its end.

    path: its folder, or its URI in object storage; sets: overrides of settings in RESUMABLE, e.g. rounds=50; accept_changes:
    whether it may go on under other settings, data or code than it was made from. ConfigError for other settings, for changes
    that are not accepted, or if there is nothing to resume. reports: as in `start_request`.
    """
    watch, federations = watch or (lambda state: None), Federations()
    _check_resumable(sets)
    path = object_store.download(str(path), strict=False) if object_store.is_uri(path) else Path(path)
    file = provenance.settings_file(path)
    if file not in ("config.yaml", "study.yaml"):
        raise ConfigError(f"{path}: no run to resume here (a run folder holds config.yaml, a study study.yaml)")
    restored = provenance.restore(path)
    if not accept_changes:  # what was not meant as a setting is not judged as one
        provenance.refuse_changes(path, provenance.edits(path))
    request = load_request(path / file, sets)
    runs = (
        [(path, request)] if isinstance(request, Config)
        else [(path / arm / f"seed-{seed}", c) for arm, seed, c in request.runs()]
    )  # fmt: skip
    if wrong := [p for folder, c in runs if (p := _rounds_problem(c, folder))]:
        raise ConfigError(list(dict.fromkeys(wrong)))
    if not isinstance(request, Config):
        configs = [c for _, _, c in request.runs()]
        split = _split_and_warm_up(launcher, configs, lambda: federations.check(request))
        changes = Changes(path, file, code_digests(request.to_dict()), split=split)
        changes.check(accept_changes)
        launcher.start(configs)
        if changes.changed:
            durable_write(path / provenance.FILE, changes.now.to_bytes())
        notes = [*restored, *changes.notes]
        return _execute_study(request, path, federations, launcher, watch, accept_changes, notes, reports)
    federation, split = _split_and_warm_up(launcher, [request], lambda: federations.checked(request))
    changes = Changes(path, file, code_digests(request.to_dict()), split=split)
    changes.check(accept_changes)
    launcher.start([request])
    folder = RunFolder.open(path, owner=Owner.me())
    changes.record(folder, restored)
    if sets:
        folder.set_config(request.to_dict())
        folder.event("settings", sets=list(sets))
    return _execute_run(request, federation, folder, launcher, watch)


def _check_resumable(sets: Sequence[str]) -> None:
    """Raise ConfigError for an override that would change what has been computed already."""
    for s in sets:
        name = s.partition("=")[0].strip()
        if not any(name == r or name.startswith(r + ".") for r in RESUMABLE):
            raise ConfigError(
                f"--set {name}: a resumed run keeps its {name.split('.')[0]}; may change: {', '.join(RESUMABLE)}{nearest(name, RESUMABLE)}"
            )


def _rounds_problem(config: Config, folder: Path) -> str | None:
    """Return a sentence where a run that has begun would go on with another number of rounds than its rounds so far follow from."""
    before = read_yaml(folder / "config.yaml").get("rounds") if (folder / "config.yaml").exists() else config.rounds
    if config.rounds == before or not (reached := max(round_log.read(folder), default=0)):
        return None
    reader = schedules.reads_rounds(config.local) or methods.of(config).reads_rounds()
    if reader is None and any(e["kind"] == READS_ROUNDS for e in read_events(folder)):
        reader = f"method.name: {config.method.name}"
    if reader is None:
        return None
    return (
        f"--set rounds={config.rounds}: {reader} reads `rounds`, and round 1 to {reached} of {folder} were those of a run of {before}; "
        f"with {config.rounds} it would be neither run. Allowed: rounds={before}, a new run with rounds={config.rounds}, or after its "
        f"end one with init.from: {folder}"
    )


def _split_and_warm_up(launcher: Launcher, configs: Sequence[Config], split: Callable[[], T]) -> T:
    """Return what `split` returns; the launcher warms up meanwhile, if no error was found within HEAD_START."""
    task = _in_background(split)  # Ray's processes end with the thread that started them: that is this one
    wait([task], timeout=HEAD_START)
    try:
        if not task.done():
            launcher.warm_up(configs)
    except Exception:
        task.result()  # errors of the request come before the launcher's
        raise
    return task.result()


def _in_background(work: Callable[[], T]) -> Future[T]:
    """Begin some work in a thread that Ctrl-C need not wait for: it ends with the process."""
    made: Future[T] = Future()

    def do() -> None:
        try:
            made.set_result(work())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return made


# -- runs --------------------------------------------------------------------------------------------------------------


def _execute_run(
    config: Config, federation: Federation, folder: RunFolder, launcher: Launcher, watch: Watch
) -> Finished:
    """Execute a run and write its report, while the launcher closes."""
    with stop_on_signals(launcher, lambda: waited_for(launcher.status())) as received:
        ending = launcher.execute(config, federation, folder, _tell(watch, {"path": str(folder.path)}, launcher))
        if ending.status == RunStatus.STOPPED:
            raise stopped_error(received, folder.path)
        received.done = folder.path
        written = _in_background(lambda: write_report(folder.path))
        launcher.close()
        given_up = written.result()
        folder.upload(plain=True)
    return Finished(folder.path, ending.status, load_json(folder.path / "summary.json"), given_up)


def waited_for(status: Mapping[str, Any]) -> str:
    """Return what has to end before a run stops, in words. status: the live one."""
    round, rounds = status.get("round", 0), status.get("rounds", 0)
    if not status or (status.get("status") == RunStatus.STARTING and not status.get("at_work")):
        return "the run to be ready"
    if round >= rounds:
        return "the run's models and summary: its last round is committed, so it ends as done"
    run = f" of {status['arm']}, seed {status['seed']}" if "arm" in status else ""
    work = f" ({status['at_work']})" if status.get("at_work") else ""
    return f"round {round + 1} of {rounds}{run}{work}, which is then committed"


def write_report(path: Path) -> list[str]:
    """Write the report of a run or a study that is done; return a sentence where that is not possible, which changes nothing of it."""
    try:
        report.write_report(path)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError | RayfedError):
            text = os_error_text(error, path) if isinstance(error, OSError) else str(error)
        return [
            f"the report was not written: {text}. Everything else of {path} stands; try again with: rayfed report {path}"
        ]
    return []


def _execute_study(
    study: Study,
    path: Path,
    federations: Federations,
    launcher: Launcher,
    watch: Watch,
    accept_changes: bool = False,
    notes: Sequence[str] = (),
    reports: bool = True,
) -> Finished:
    """Execute the runs of a study that have not ended, then write its summary and report.

    accept_changes: as in `resume_request`; notes: of the resume, for the runs that it executes. Reports of single runs are
    written while the next runs execute.
    """
    mirror = object_store.mirror_of(path)
    if mirror:
        mirror.push(0)
    runs = sorted(
        study.runs(), key=lambda r: study.seeds.index(r[1])
    )  # arms of a seed in sequence: they share its split
    waiting = [not has_ended(path / arm / f"seed-{seed}", c.rounds) for arm, seed, c in runs]
    arms = [arm for arm, _, _ in runs]
    written_later: list[Future[list[str]]] = []
    done: list[RunFolder] = []
    now: dict[str, Any] = {}  # which run
    with stop_on_signals(launcher, lambda: waited_for({**launcher.status(), **now})) as received:
        for k, (arm, seed, config) in enumerate(runs):
            where = path / arm / f"seed-{seed}"
            if not waiting[k]:
                continue
            federation, split, code = *federations.with_digest(config), code_digests(config.to_dict())
            if provenance.settings_file(where):
                restored = provenance.restore(where)
                changes = Changes(where, "config.yaml", code, split=split, config=config.to_dict())
                changes.check(accept_changes)
                folder = RunFolder.open(where, owner=Owner.me())
                config = Choice.from_config(folder.config).apply(config)  # what timing chose stays chosen
                changes.record(folder, restored)
                if changes.accepted:
                    folder.set_config(config.to_dict())
            else:
                stored = object_store.join_uri(mirror.uri, arm, f"seed-{seed}") if mirror else None
                folder = RunFolder.create(
                    where, config.to_dict(), owner=Owner.me(), exact=True, stored=stored, split=split, code=code
                )
            for note in notes:
                folder.event("changed", note=note)
            now = {"arm": arm, "seed": seed, "run_number": k + 1, "runs": len(runs), "path": str(where)}
            now["to_come"] = [later for later, left in zip(arms[k + 1 :], waiting[k + 1 :]) if left]
            ending = launcher.execute(config, federation, folder, _tell(watch, now, launcher))
            if ending.status == RunStatus.STOPPED:
                raise stopped_error(received, path)
            if reports:
                written_later.append(_in_background(partial(write_report, where)))
            done.append(folder)
        summary = report.study_summary(path)
        received.done = path
        given_up = [sentence for written in written_later for sentence in written.result()]
        for folder in done:
            folder.upload(plain=True)
        given_up += write_report(path) if reports else []
        if mirror:
            mirror.push(0, plain=True)
    return Finished(path, summary["status"], summary, given_up)


def _tell(watch: Watch, about: dict[str, Any], launcher: Launcher) -> Watch:
    """Return what passes a live status on, with which run it is of, and stops that run where the one who is told says so."""

    def tell(state: dict[str, Any]) -> None:
        if watch({**state, **about}) is True:
            launcher.stop()

    return tell


def has_ended(folder: Path, rounds: int) -> bool:
    """Return whether a run has ended with that many rounds, or early as its config says, and is undamaged."""
    summary = read_json(folder / "summary.json")
    enough = summary.get("rounds", 0) >= rounds or bool(summary.get("stopped_early"))
    return summary.get("status") == RunStatus.DONE and enough and find_damage(folder) is None


# -- in this process ---------------------------------------------------------------------------------------------------


class LocalLauncher:
    """Executes runs in this process, without Ray.


    own_process: whether this process is the command's own, so that what makes it faster may change it for good (its memory
    allocator, torch's compiler; see `execute.tuning.process`); otherwise it is left as it was.
    """

    def __init__(self, own_process: bool = False) -> None:
        self.own_process = own_process
        self.runner: Any = None
        self.pool: Any = None
        self.stopping = False

    def warm_up(self, configs: Sequence[Config]) -> None:
        """Import torch."""
        import torch  # noqa: F401

    def start(self, configs: Sequence[Config]) -> None:
        """Choose the device: a GPU if there is one and the config allows it."""
        import torch

        from rayfed.engine.pool import LocalPool
        from rayfed.execute.tuning import kernels, process

        self.device = "cuda" if torch.cuda.is_available() and configs[0].resources.gpus_per_actor != 0 else "cpu"
        if self.own_process:
            process.prepare()
            if self.device != "cpu":
                kernels.prepare_gpu()
        self.pool = LocalPool(self.device)

    def execute(self, config: Config, federation: Federation, folder: RunFolder, watch: Watch) -> Ending:
        """Run one config into its folder, on as many threads as an actor has."""
        import torch

        from rayfed.engine.runner import Runner

        self.runner = Runner(config, federation, self.pool, folder, progress=watch)
        if self.stopping:  # asked before this run began
            self.runner.stop()
        threads = torch.get_num_threads()
        torch.set_num_threads(config.resources.threads)
        try:
            return self.runner.execute()
        finally:
            torch.set_num_threads(threads)

    def stop(self) -> None:
        """Ask the current run, or the next one, to stop after a round."""
        self.stopping = True
        if self.runner is not None:
            self.runner.stop()

    def status(self) -> Mapping[str, Any]:
        """Return the runner's status."""
        return self.runner.live() if self.runner is not None else {}

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def run_local(
    request: Config | Study,
    *,
    out: str | Path | None = None,
    watch: Watch | None = None,
    own_process: bool = False,
    reports: bool = True,
) -> Finished:
    """Run a request in this process, as `rayfed run --local`. Arguments as in `start_request` and `LocalLauncher`."""
    return start_request(request, LocalLauncher(own_process), out=out, watch=watch, reports=reports)


def resume_local(
    path: str | Path,
    *,
    sets: Sequence[str] = (),
    accept_changes: bool = False,
    watch: Watch | None = None,
    own_process: bool = False,
    reports: bool = True,
) -> Finished:
    """Continue a run or a study in this process, as `rayfed resume --local`. Arguments as in `resume_request` and `LocalLauncher`."""
    launcher = LocalLauncher(own_process)
    return resume_request(path, launcher, sets=sets, accept_changes=accept_changes, watch=watch, reports=reports)
