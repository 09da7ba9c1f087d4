"""The Python interface: runs, studies and sweeps, started, read and shown (docs/python.md)."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.errors import ConfigError, Stopped, nearest

if TYPE_CHECKING:
    import pyarrow

    from rayfed.config.schema import Config
    from rayfed.launch.following import Follower
    from rayfed.launch.start import Finished
    from rayfed.partition.describe import Description
    from rayfed.report.picture import Picture
    from rayfed.report.tables import ResultTable
    from rayfed.served import Model, Served

Sets = Sequence[str] | Mapping[str, Any]  # overrides: ["a.b=c"] or {"a.b": c}
Watch = Callable[[dict[str, Any]], Any]  # is called with the live status; True stops the run


@dataclass(frozen=True)
class Run:
    """Read a run folder, finished or not; `rayfed.run`, `resume` and `load` return one. Files are read when they are asked for.

    path: the folder. In a notebook it shows its final values and curves.

    Example:

        >>> run.summary["status"], run.metrics()["round"].to_pylist()
        ('done', [1, 2])
        >>> run.models()
        ['model']
        >>> run.model(client=3)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, as plain values."""
        from rayfed.storage.provenance import read_settings

        return read_settings(self.path)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json: status, final and best values, versions ...; None while the run has not ended."""
        return _summary(self.path)

    @property
    def status(self) -> str:
        """The status in words, as `rayfed runs` shows it: running, done, failed ..."""
        from rayfed.storage.listing import status

        return status(self.path)

    def metrics(self, evaluated: bool = False) -> pyarrow.Table:
        """Return a row per committed round: column `round` from 1, then the metrics, null where a metric was not measured.

        evaluated: only the rounds that were evaluated.
        """
        from rayfed.metrics import has_scores
        from rayfed.storage.run_folder import read_metrics

        table = read_metrics(self.path)
        if not evaluated:
            return table
        return table.take([i for i, row in enumerate(table.to_pylist()) if has_scores([row])])

    def clients(self, round: int | None = None) -> pyarrow.Table:
        """Return a row per client of an evaluated round, by default the newest: group, cluster, examples, its metrics ...

        ConfigError if the round was not evaluated.
        """
        import pyarrow as pa

        from rayfed.storage.round_log import read_clients

        found = read_clients(self.path, round)
        if not found:
            which = "no round yet" if round is None else f"round {round}"
            raise ConfigError(
                f"{self.path}: {which} has rows of clients (evaluate.every: {self.config['evaluate']['every']})"
            )
        return pa.Table.from_pylist(found)

    def plot(self, *metrics: str) -> Picture:
        """Return the curves by round; a notebook shows them, `.save("curves.pdf")` writes them (.pdf, .svg, .png), and `.figure()` is a
        matplotlib figure to be changed.

        metrics: one panel each; by default the first measure with all its scopes. ConfigError for one that was not measured.
        """
        from rayfed.report.notebook import plot

        return plot(self.path, metrics)

    def models(self, best: bool = False) -> list[str]:
        """Return the names of the saved models: "model" (the global one), "expert-0", ...; none before the run has ended.

        best: those of the best round, which `storage.best` keeps.
        """
        from rayfed.served import best_models, list_models

        return list_models(self.path, best_models(self.path) if best else "model")

    def model(
        self, name: str = "model", *, cluster: int | None = None, client: int | None = None, best: bool = False
    ) -> Model:
        """Return a trained model: a dict of its parameters; `model(x)` returns logits (B, classes) of inputs (B, *input_shape).

        name: a saved model, by default the global one; cluster: that cluster's expert; client: what this client is served,
        also a held-out one (the data is split again for that); best: of the best round, which `storage.best` keeps, not of the last
        one. ConfigError with the models that there are.
        """
        from rayfed.served import best_models, load_model

        if client is not None:
            if best:
                raise ConfigError("model: best and client found; what clients keep is there for the last round only")
            return self._served.model(client)
        where = best_models(self.path) if best else "model"
        return load_model(self.path, self._config, name if cluster is None else f"expert-{cluster}", where)

    def save_adapter(self, client: int, folder: str | Path) -> Path:
        """Write the adapter that a client is served, also a held-out one, into a new folder and return the folder.

        The format is PEFT's where PEFT knows the kind, a LoRA has the client's own rank and scale; under `head: mean` the
        classifier is in head.safetensors, which `init.from` reads too. ConfigError if there is no such client, if the model has
        no adapter, or if the folder is not empty.
        """
        self._served.save_adapter(client, Path(folder))
        return Path(folder)

    def _repr_html_(self) -> str:
        from rayfed.report.notebook import show

        return show(self.path)

    @cached_property
    def _config(self) -> Config:
        from rayfed.config.load import load_config
        from rayfed.config.schema import Config

        found = load_config(self.path / "config.yaml")
        assert isinstance(found, Config)
        return found

    @cached_property
    def _served(self) -> Served:
        from rayfed.served import Served

        return Served(self.path, self._config)


@dataclass(frozen=True)
class Study:
    """A study's folder, finished or not: every arm with every seed. In a notebook it shows its table and curves.

    path: the folder.
    """

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The study's settings, as plain values: base settings, seeds, arms, claim."""
        from rayfed.storage.provenance import read_settings

        return read_settings(self.path, "study.yaml")

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json: each arm's final values over seeds, and the verdict on the claim; None before the end."""
        return _summary(self.path)

    @property
    def arms(self) -> dict[str, dict[int, Run]]:
        """Runs that have begun: arm -> seed -> run."""
        from rayfed.storage.study_folder import study_runs

        out: dict[str, dict[int, Run]] = {}
        for arm, seed, folder in study_runs(self.path, self.config):
            runs = out.setdefault(arm, {})
            if (folder / "config.yaml").is_file():
                runs[seed] = Run(folder)
        return out

    def results(self) -> pyarrow.Table:
        """Return a row per arm, seed and committed round."""
        from rayfed.report.study import results
        from rayfed.report.subject import load_study

        return results(load_study(self.path))

    def table(self, *metrics: str) -> ResultTable:
        """Return the final values by arm, mean and standard deviation over seeds, of the runs that are done.

        A notebook shows it; `.to_markdown()`, `.to_latex()`, `.to_csv()` and `.to_arrow()` give it for use elsewhere. metrics: its
        columns, by default all scores. ConfigError for one that was not measured.
        """
        from rayfed.report.subject import load_study
        from rayfed.report.tables import result_table

        return result_table(load_study(self.path), metrics)

    def plot(self, *metrics: str) -> Picture:
        """Return the arms' curves by round, a mean and a band over seeds; as `Run.plot`."""
        from rayfed.report.notebook import plot

        return plot(self.path, metrics)

    def _repr_html_(self) -> str:
        from rayfed.report.notebook import show

        return show(self.path)


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder, finished or not: every trial with every seed. In a notebook it shows its best trials.

    path: the folder.
    """

    path: Path

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json: the best trials with their points, those that diverged or failed; None before the end."""
        return _summary(self.path)

    @property
    def trials(self) -> dict[str, dict[int, Run]]:
        """Runs of trials that have results, best trial first: trial -> seed -> run."""
        from rayfed.storage.sweep_folder import load_sweep

        found = load_sweep(self.path)
        return {
            t.name: {int(s): Run(self.path / t.last["folder"] / f"seed-{s}") for s in t.last["seeds"]}
            for t in found.ranked
        }

    def results(self) -> pyarrow.Table:
        """Return a row per trial and evaluated round: the point's settings, and of each metric mean, sd and 95 % interval."""
        from rayfed.report.sweep import results
        from rayfed.storage.sweep_folder import load_sweep

        return results(load_sweep(self.path))

    def _repr_html_(self) -> str:
        from rayfed.report.notebook import show_sweep

        return show_sweep(self.path)


def _summary(path: Path) -> dict[str, Any] | None:
    from rayfed.storage.text_files import read_json

    return read_json(path / "summary.json") or None


# -- what is there -----------------------------------------------------------------------------------------------------


def load(path: str | Path) -> Run | Study | Sweep:
    """Return the run, study or sweep in a folder, also while it is still running in another process. ConfigError if there is none."""
    path = Path(path)
    for file, kind in (("study.yaml", Study), ("sweep.yaml", Sweep), ("config.yaml", Run)):
        if (path / file).is_file():
            return kind(path)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() and not path.is_dir() else []
    raise ConfigError(
        f"{path}: neither a run folder (config.yaml) nor a study's (study.yaml) nor a sweep's (sweep.yaml)"
        f"{nearest(path.name, siblings)}"
    )


class Runs(list[Run | Study | Sweep]):
    """Runs, studies and sweeps of a folder, oldest first; a notebook shows them with their statuses."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]):
        """entries: as `rayfed.storage.listing.list_runs` gives them."""
        kinds: dict[str, type[Run | Study | Sweep]] = {"run": Run, "study": Study, "sweep": Sweep}
        super().__init__(kinds[e["kind"]](Path(e["path"])) for e in entries)
        self.entries = entries

    def _repr_html_(self) -> str:
        from rayfed.report.html import part

        head = ("kind", "name", "method", "round", "rounds", "status")
        return part("plain_table", head, [[str(e[c]) for c in head] for e in self.entries])


def runs(folder: str | Path = "runs") -> Runs:
    """Return the runs, studies and sweeps in a folder, oldest first. ConfigError if it is no folder."""
    from rayfed.storage.listing import list_runs

    if not Path(folder).is_dir():
        raise ConfigError(f"runs: {folder} is not a folder")
    return Runs(list_runs(folder))


Folder = str | Path | Run | Study | Sweep


def report(run: Folder) -> Path:
    """Write `report.html` and `plots/` of a run or a study again, `sweep.html` of a sweep, and return the page."""
    from rayfed.report import write_report

    return write_report(_path(run))


def compare(*runs: Folder, out: str | Path | None = None) -> Path:
    """Write one page that compares runs and studies, and return it.

    out: its file; default: compare-IDS.html here. ConfigError for a folder that is neither, or if there is none.
    """
    from rayfed.report import write_comparison

    if not runs:
        raise ConfigError("compare: nothing to compare; pass runs, studies, or their folders")
    return write_comparison([_path(r) for r in runs], out)


def _path(run: Folder) -> Path:
    return Path(run if isinstance(run, str | Path) else run.path)


class Splits(list["Description"]):
    """Data splits in numbers: of a config one, of a study every different one; a notebook shows them with a picture, `str` in words."""

    def save(self, file: str | Path) -> Path:
        """Write the picture into a .png, .pdf or .svg file and return it. ConfigError if that is not possible."""
        from rayfed.report.split_pictures import write

        write(self, Path(file))
        return Path(file)

    def __str__(self) -> str:
        return "\n\n".join(d.text() for d in self)

    def _repr_png_(self) -> bytes:
        from rayfed.report.split_pictures import png

        return png(self)

    def _repr_html_(self) -> str:
        from rayfed.report.html import joined, part
        from rayfed.report.notebook import image

        return joined([part("code", str(self)), image(self)])


def partition(config: str | Path | Mapping[str, Any], *, sets: Sets = (), seed: int | None = None) -> Splits:
    """Return who holds what, without training: the data split of a config, or every different one of a study.

    config, sets: as in `run`; seed: default the config's, or the study's first. ConfigError as in `run`.
    """
    from rayfed.launch.preflight import load_request
    from rayfed.partition.describe import describe

    return Splits(describe(load_request(config, sets), seed))


# -- to compute --------------------------------------------------------------------------------------------------------


class Callback:
    """What is called while runs go on, for `run(..., callbacks=[...])`: a subclass defines what it needs of the three.

    They are called in the calling process, in order, for every committed round once; on Ray perhaps for several rounds at once, since
    these do not wait. One that returns True stops the run after its current round: `run` then returns it as it is, to be resumed.
    A config has its own means for what must be the same in every run: `stop.patience` ends a run that does not get better, and
    `storage.best` keeps the models of the best round.
    """

    def on_round(self, run: Run, row: dict[str, Any]) -> bool | None:
        """Take a committed round: its row, as in `run.metrics()`."""

    def on_evaluate(self, run: Run, row: dict[str, Any]) -> bool | None:
        """Take an evaluated round, after `on_round`."""

    def on_end(self, run: Run) -> None:
        """Take a run that is done; in a study this is called for every one."""


def run(
    config: str | Path | Mapping[str, Any],
    *,
    sets: Sets = (),
    out: str | Path | None = None,
    address: str | None = None,
    local: bool = False,
    watch: Watch | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
) -> Run | Study:
    """Run an experiment or a study to its end.

    Arguments:
        config: a file, the name of a ready config, or a mapping. In a mapping, a class or function stands for a method, data
            or a model of your own.
        sets: overrides, ["method.clusters=4"] or {"method.clusters": 4}.
        out: the folder of run folders, or a URI in object storage, instead of `storage.path`.
        address: the Ray cluster, as `--address`: "local", "auto" or an address; default: the Ray that this process is connected
            to, which is left alone, RAY_ADDRESS, or a local Ray.
        local: whether to compute in this process, without Ray.
        watch: is called with the live status after each round; True stops the run.
        callbacks: are called with rounds, evaluations and ends.
        progress: whether to show it; default: in notebooks and on terminals.

    Returns the run, or the study if the config is one (it has arms or seeds).

    Raises ConfigError with everything that is wrong with the request, before anything starts; PlacementError if the cluster
    cannot hold it; RunFailed if it breaks, Interrupted if it is stopped: both say how to resume.

    Example:

        >>> config = {"task": {"data": "digits", "model": "linear"}, "federation": {"clients": 4}, "method": "fedavg"}
        >>> run = rayfed.run(config, sets=["rounds=2"], local=True)
        >>> run.summary["rounds"]
        2
    """
    from rayfed.launch.preflight import load_request

    request = load_request(config, sets)
    if local:
        from rayfed.launch.start import run_local

        work = partial(run_local, request, out=out)
    else:
        from actors.driver import run_on_ray

        work = partial(run_on_ray, request, out=out, address=address)
    return _compute(work, watch, callbacks, progress)


def resume(
    path: str | Path,
    *,
    sets: Sequence[str] = (),
    accept_changes: bool = False,
    address: str | None = None,
    local: bool = False,
    watch: Watch | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
) -> Run | Study:
    """Continue a run or a study from its last snapshot to its end.

    path: its folder, or its URI in object storage; sets: overrides of settings that may change, such as ["rounds=50"];
    accept_changes: whether it may go on though settings, data or code are not what it was made from; other arguments, return
    value and errors as in `run`.
    """
    if local:
        from rayfed.launch.start import resume_local

        work = partial(resume_local, path, sets=sets, accept_changes=accept_changes)
    else:
        from actors.driver import resume_on_ray

        work = partial(resume_on_ray, path, sets=sets, accept_changes=accept_changes, address=address)
    return _compute(work, watch, callbacks, progress, Path(path))


def sweep(
    spaces: str | Sequence[str],
    config: str | Path | Mapping[str, Any],
    *,
    sets: Sequence[str] = (),
    out: str | Path | None = None,
    search: str | None = None,
    samples: int | None = None,
    scheduler: str = "none",
    seeds: Sequence[int] = (),
    metric: str = "accuracy/global",
    concurrent: int | None = None,
    arm: str | None = None,
    address: str | None = None,
    watch: Watch | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Search a space on Ray Tune, as `rayfed sweep` (docs/sweeps.md).

    Arguments:
        spaces: a ready space ("clusters"), a file of yours, or several, which are multiplied.
        config, out, address, watch, progress: as in `run`; sets: overrides ["a.b=c"].
        search: grid | random | optuna; default: grid where the space has one. samples: points of a search that draws them.
        scheduler: none | asha | pbt. seeds: of every point; default: the config's. metric: NAME/SCOPE that trials are judged by.
        concurrent: trials at a time; default: what fits. arm: which one, where the config is a study.

    Errors as in `run`.
    """
    from tune_spaces.sweep.request import SweepOptions, check_request
    from tune_spaces.sweep.start import start_sweep

    options = SweepOptions(search, samples, scheduler, tuple(seeds), metric, concurrent)
    names = spaces.split(",") if isinstance(spaces, str) else list(spaces)
    request = check_request(names, config, options, sets, arm)
    with _shown(progress) as show:
        done = start_sweep(request, out=out, address=address, watch=lambda status: _all(status, show, watch))
    return Sweep(done.path)


def start(config: str | Path | Mapping[str, Any], **options: Any) -> Running:
    """Start a run or a study in the background and return its handle at once. Arguments as `run`; nothing is shown but the handle.

    It goes on in a thread of this process, and ends with it (what is committed stays; `resume` continues). Errors of the request are
    raised here, later ones by `Running.result`.
    """
    from rayfed.launch.preflight import load_request

    load_request(config, options.get("sets", ()))
    return Running(partial(run, config, **{"progress": False, **options}), options.get("watch"))


class Running:
    """A run or a study that goes on in the background; a notebook shows how it stands.

    Attributes:
        status: the live status, a mapping; {} before there is one.
        run: the run under way, with the rows that it has so far; None before it has begun.
    """

    def __init__(self, work: Callable[..., Run | Study], watch: Watch | None = None):
        """work: takes `watch` and returns the run; watch: of the caller."""
        self.status: dict[str, Any] = {}
        self.run: Run | None = None
        self._watch, self._stop = watch, False
        self._future: Future[Run | Study] = Future()
        threading.Thread(target=self._work, args=(work,), name="rayfed-run", daemon=True).start()

    def done(self) -> bool:
        """Return whether it has ended, well or not."""
        return self._future.done()

    def stop(self) -> None:
        """Let the current round be committed, and end; `rayfed.resume` continues."""
        self._stop = True

    def result(self, timeout: float | None = None) -> Run | Study:
        """Wait for the end and return the run or the study; raise what ended it. TimeoutError after so many seconds."""
        return self._future.result(timeout)

    def _work(self, work: Callable[..., Run | Study]) -> None:
        try:
            self._future.set_result(work(watch=self._see))
        except BaseException as error:
            self._future.set_exception(error)

    def _see(self, status: dict[str, Any]) -> bool:
        self.status = status
        self.run = Run(Path(status["path"])) if "path" in status else self.run
        asked = self._watch is not None and self._watch(status) is True
        return self._stop or asked

    def __repr__(self) -> str:
        from rayfed.launch.progress import line

        return f"<Running: {line(self.status) if self.status else 'starting'}>"


def _compute(
    work: Callable[..., Finished],
    watch: Watch | None,
    callbacks: Sequence[Callback],
    progress: bool | None,
    resumed: Path | None = None,
) -> Run | Study:
    """Do some work that takes `watch`, and return the run or the study that it leaves, also one that a caller has stopped."""
    follower = _follower(callbacks, resumed) if callbacks else None
    asked = False

    with _shown(progress) as show:

        def tell(status: dict[str, Any]) -> bool:
            nonlocal asked
            asked |= _all(status, show, watch, follower)
            return asked

        try:
            finished = work(watch=tell)
            path, given_up = finished.path, finished.given_up
        except Stopped as stopped:
            if not asked:
                raise
            path, given_up = stopped.folder, []
    if follower:
        follower.close()
    for sentence in given_up:
        warnings.warn(sentence, stacklevel=3)
    return _folder(path)


def _all(status: dict[str, Any], *listeners: Callable[[dict[str, Any]], Any] | None) -> bool:
    """Tell a status to all who listen; return whether one of them asks for a stop."""
    return any([listener is not None and listener(status) is True for listener in listeners])


def _shown(progress: bool | None) -> Any:
    """Return the context in which a status is shown: its value takes statuses."""
    from rayfed.launch.live import shown

    return shown(progress)


def _follower(callbacks: Sequence[Callback], resumed: Path | None) -> Follower:
    from rayfed.launch.following import Follower

    def tell(event: str, path: Path, row: dict[str, Any]) -> bool:
        if event == "end":
            for callback in callbacks:
                callback.on_end(Run(path))
            return False
        name = {"round": "on_round", "evaluate": "on_evaluate"}[event]
        return any([getattr(callback, name)(Run(path), row) is True for callback in callbacks])

    return Follower(tell, resumed)


def _folder(path: Path) -> Run | Study:
    found = load(path)
    assert not isinstance(found, Sweep)
    return found
