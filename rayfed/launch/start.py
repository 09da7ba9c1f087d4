"""From a request (one run or a study) to finished folders: the part that Ray and in-process execution share."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rayfed.config import user_code
from rayfed.errors import ConfigError, Interrupted, RunFailed, nearest
from rayfed.execute.choice import Choice
from rayfed.launch.federations import Federations
from rayfed.storage import object_store
from rayfed.storage.new_folder import new_folder
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.text_files import yaml_bytes

if TYPE_CHECKING:
    from rayfed.config.schema import Config, Study
    from rayfed.engine.runner import Ending
    from rayfed.partition import Federation

Watch = Callable[[dict[str, Any]], None]
T = TypeVar("T")
HEAD_START = 0.25  # seconds
RUN_ID = "RAYFED_RUN_ID"  # the folder's name, where whoever started the command chose it
RESUMABLE = (
    "rounds",
    "resources",
    "failures",
    "storage",
    "stop",
    "track",
    "evaluate.every",
)  # change the future, not the past


class Launcher(Protocol):
    """Executes prepared runs somewhere."""

    def ahead(self, configs: Sequence[Config]) -> None:
        """Begin with what takes long, while the data is still being split; PlacementError as `start`."""

    def start(self, configs: Sequence[Config]) -> None:
        """Get ready for these runs; PlacementError if they cannot be placed."""

    def execute(self, config: Config, federation: Federation, folder: RunFolder, watch: Watch) -> Ending: ...

    def stop(self) -> None:
        """Ask the run in hand to stop after committing its round (may be called from a signal handler)."""

    def close(self) -> None: ...


@dataclass
class Finished:
    """A run's or a study's folder, how it ended, and its summary.json."""

    path: Path
    status: str
    summary: dict[str, Any]


def run(
    request: Config | Study, launcher: Launcher, *, out: str | Path | None = None, watch: Watch | None = None
) -> Finished:
    """Run a config or every arm and seed of a study. Errors as in `rayfed.errors`; what was committed stays."""
    from rayfed.config.schema import Config

    watch, federations = watch or (lambda state: None), Federations()
    base = request if isinstance(request, Config) else request.base
    path, uri = object_store.local_folder(out or base.storage.path)
    where: dict[str, Any] = {"stored": uri, "run_id": os.environ.get(RUN_ID)}
    if isinstance(request, Config):
        federation = _beside(launcher, [request], lambda: federations.checked(request))
        launcher.start([request])
        folder = RunFolder.create(path, request.to_dict(), owner=Owner.me(), **where)
        return _single(request, federation, folder, launcher, watch)
    configs = [c for _, _, c in request.runs()]
    _beside(launcher, configs, lambda: federations.check(request))
    launcher.start(configs)
    files = {"study.yaml": yaml_bytes(request.to_dict()), **user_code.written(request.to_dict())}
    path = new_folder(path, request.base.name, files, **where)
    return _study(request, path, federations, launcher, watch)


def resume(path: str | Path, launcher: Launcher, *, sets: Sequence[str] = (), watch: Watch | None = None) -> Finished:
    """Continue a run or a study where its last snapshot left it. `path`: its folder, or its URI in object storage;
    `sets`: overrides of what may change, e.g. rounds=50."""
    from rayfed.config.schema import Config, Study
    from rayfed.launch.preflight import load_request

    watch, federations = watch or (lambda state: None), Federations()
    for s in sets:
        name = s.partition("=")[0].strip()
        if not any(name == r or name.startswith(r + ".") for r in RESUMABLE):
            raise ConfigError(
                f"--set {name}: a resumed run keeps its {name.split('.')[0]}; may change: {', '.join(RESUMABLE)}{nearest(name, RESUMABLE)}"
            )
    path = object_store.download(str(path)) if object_store.is_uri(path) else Path(path)
    if (path / "study.yaml").exists():
        request = load_request(path / "study.yaml", sets)
        assert isinstance(request, Study)
        configs = [c for _, _, c in request.runs()]
        _beside(launcher, configs, lambda: federations.check(request))
        launcher.start(configs)
        return _study(request, path, federations, launcher, watch)
    if not (path / "config.yaml").exists():
        raise ConfigError(f"{path}: no run to resume here (a run folder holds config.yaml, a study study.yaml)")
    config = load_request(path / "config.yaml", sets)
    assert isinstance(config, Config)
    federation = _beside(launcher, [config], lambda: federations.checked(config))
    launcher.start([config])
    folder = RunFolder.open(path, owner=Owner.me())
    if sets:
        folder.set_config(config.to_dict())
        folder.event("settings", sets=list(sets))
    return _single(config, federation, folder, launcher, watch)


def _beside(launcher: Launcher, configs: Sequence[Config], split: Callable[[], T]) -> T:
    """What `split` gives. What is wrong with a request is mostly found within HEAD_START; after that the launcher begins too."""
    with ThreadPoolExecutor(1) as other:  # Ray's processes end with the thread that started them: that is this one
        task = other.submit(split)
        wait([task], timeout=HEAD_START)
        try:
            if not task.done():
                launcher.ahead(configs)
        finally:
            made = task.result()  # its errors come first
        return made


def _single(config: Config, federation: Federation, folder: RunFolder, launcher: Launcher, watch: Watch) -> Finished:
    from rayfed.report import write_report

    with _signals(launcher) as asked:
        ending = launcher.execute(config, federation, folder, watch)
    if ending.status == "stopped":
        raise _interrupted(asked, folder.path)
    with ThreadPoolExecutor(1) as other:  # written while Ray ends
        written = other.submit(write_report, folder.path)
        launcher.close()
        written.result()
    folder.upload(plain=True)
    return Finished(folder.path, ending.status, json.loads((folder.path / "summary.json").read_text()))


def _study(study: Study, path: Path, federations: Federations, launcher: Launcher, watch: Watch) -> Finished:
    from rayfed.report import study_summary, write_report

    mirror = object_store.mirror_of(path)
    if mirror:
        mirror.push(0)
    runs = sorted(study.runs(), key=lambda r: study.seeds.index(r[1]))  # all arms of a seed together share its split
    reports: list[threading.Thread] = []
    done: list[RunFolder] = []
    with _signals(launcher) as asked:
        for k, (arm, seed, config) in enumerate(runs):
            where = path / arm / f"seed-{seed}"
            if has_ended(where, config.rounds):
                continue
            folder = (
                RunFolder.open(where, owner=Owner.me())
                if (where / "config.yaml").exists()
                else RunFolder.create(
                    where,
                    config.to_dict(),
                    owner=Owner.me(),
                    exact=True,
                    stored=object_store.join_uri(mirror.uri, arm, f"seed-{seed}") if mirror else None,
                )
            )
            if folder.fence > 1:  # what was chosen by timing stays chosen
                config = Choice.from_config(folder.config).apply(config)
            about = {"arm": arm, "seed": seed, "run_number": k + 1, "runs": len(runs)}
            ending = launcher.execute(config, federations.of(config), folder, _with(watch, about))
            if ending.status == "stopped":
                raise _interrupted(asked, path)
            reports.append(threading.Thread(target=write_report, args=(where,)))
            reports[-1].start()
            done.append(folder)
    for t in reports:
        t.join()
    for folder in done:
        folder.upload(plain=True)
    summary = study_summary(path)
    write_report(path)
    if mirror:
        mirror.push(0, plain=True)
    return Finished(path, summary["status"], summary)


def _with(watch: Watch, about: dict[str, Any]) -> Watch:
    return lambda state: watch({**state, **about})


def has_ended(where: Path, rounds: int) -> bool:
    """Whether a run has ended with that many rounds, or early as its config says."""
    file = where / "summary.json"
    if not file.exists():
        return False
    summary = json.loads(file.read_text())
    return summary["status"] == "done" and (summary["rounds"] >= rounds or bool(summary.get("stopped_early")))


def _interrupted(asked: list[int], path: Path) -> Exception:
    if not asked:
        return RunFailed(f"the run was stopped from outside; continue with: rayfed resume {path}")
    error = Interrupted(f"interrupted; the last round is committed. Continue with: rayfed resume {path}")
    error.exit_code = 128 + asked[0]
    return error


class _AtOnce(BaseException):
    """A second signal: what catches a client's exceptions must not take it for one."""


@contextmanager
def _signals(launcher: Launcher) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM lets the round in hand commit; a second one ends at once."""
    asked: list[int] = []

    def handler(signum: int, frame: Any) -> None:
        asked.append(signum)
        if len(asked) > 1:
            raise _AtOnce
        launcher.stop()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    except _AtOnce:
        error = Interrupted("interrupted at once; continue with `rayfed resume` from the last snapshot")
        error.exit_code = 128 + asked[-1]
        raise error from None
    finally:
        for s, h in before.items():
            signal.signal(s, h)


class LocalLauncher:
    """Runs in this process, no Ray."""

    def __init__(self) -> None:
        self.runner: Any = None
        self.pool: Any = None
        self.stopping = False

    def ahead(self, configs: Sequence[Config]) -> None:
        import torch  # noqa: F401

    def start(self, configs: Sequence[Config]) -> None:
        import torch

        from rayfed.engine.pool import LocalPool
        from rayfed.execute.tuning import process

        process.prepare()
        self.device = "cuda" if torch.cuda.is_available() and configs[0].resources.gpus_per_actor != 0 else "cpu"
        self.pool = LocalPool(self.device)

    def execute(self, config: Config, federation: Federation, folder: RunFolder, watch: Watch) -> Ending:
        from rayfed.engine.runner import Runner

        self.runner = Runner(config, federation, self.pool, folder, progress=watch)
        if self.stopping:  # asked before this run began
            self.runner.stop()
        return self.runner.execute()

    def stop(self) -> None:
        self.stopping = True
        if self.runner is not None:
            self.runner.stop()

    def close(self) -> None:
        pass


def run_local(request: Config | Study, *, out: str | Path | None = None, watch: Watch | None = None) -> Finished:
    """`rayfed run --local`: everything in this process."""
    return run(request, LocalLauncher(), out=out, watch=watch)


def resume_local(path: str | Path, *, sets: Sequence[str] = (), watch: Watch | None = None) -> Finished:
    """`rayfed resume --local`."""
    return resume(path, LocalLauncher(), sets=sets, watch=watch)
