"""The Python interface: `rayfed.run`, `rayfed.resume`, `rayfed.load` and what they return (docs/python.md)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pyarrow

    from rayfed.config.schema import Config
    from rayfed.launch.start import Finished
    from rayfed.served import Model, Served

Sets = Sequence[str] | Mapping[str, Any]  # overrides: ["a.b=c"] or {"a.b": c}
Watch = Callable[[dict[str, Any]], None]  # is called with the live status


@dataclass(frozen=True)
class Run:
    """Read a run folder, finished or not; `rayfed.run`, `resume` and `load` return one. Files are read when they are asked for.

    path: the folder.

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

    def metrics(self) -> pyarrow.Table:
        """Return a row per committed round: column `round` from 1, then the metrics, null where a metric was not measured."""
        from rayfed.storage.run_folder import read_metrics

        return read_metrics(self.path)

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

    def models(self) -> list[str]:
        """Return the names of the saved models: "model" (the global one), "expert-0", ...; none before the run has ended."""
        from rayfed.served import list_models

        return list_models(self.path)

    def model(self, name: str = "model", *, cluster: int | None = None, client: int | None = None) -> Model:
        """Return a trained model: a dict of its parameters; `model(x)` returns logits (B, classes) of inputs (B, *input_shape).

        name: a saved model, by default the global one; cluster: that cluster's expert; client: what this client is served,
        also a held-out one (the data is split again for that). ConfigError with the models that there are.
        """
        from rayfed.served import load_model

        if client is not None:
            return self._served.model(client)
        return load_model(self.path, self._config, name if cluster is None else f"expert-{cluster}")

    def save_adapter(self, client: int, folder: str | Path) -> Path:
        """Write the adapter that a client is served, also a held-out one, into a new folder and return the folder.

        The format is PEFT's where PEFT knows the kind, a LoRA has the client's own rank and scale; under `head: mean` the
        classifier is in head.safetensors, which `init.from` reads too. ConfigError if there is no such client, if the model has
        no adapter, or if the folder is not empty.
        """
        self._served.save_adapter(client, Path(folder))
        return Path(folder)

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
    """A study's folder, finished or not: every arm with every seed.

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


def _summary(path: Path) -> dict[str, Any] | None:
    from rayfed.storage.text_files import read_json

    return read_json(path / "summary.json") or None


def load(path: str | Path) -> Run | Study:
    """Return the run or the study in a folder, also while it is still running in another process. ConfigError if there is none."""
    path = Path(path)
    if (path / "study.yaml").is_file():
        return Study(path)
    if (path / "config.yaml").is_file():
        return Run(path)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() and not path.is_dir() else []
    raise ConfigError(
        f"{path}: neither a run folder (config.yaml) nor a study's (study.yaml){nearest(path.name, siblings)}"
    )


def run(
    config: str | Path | Mapping[str, Any],
    *,
    sets: Sets = (),
    out: str | Path | None = None,
    address: str | None = None,
    local: bool = False,
    watch: Watch | None = None,
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
        watch: is called with the live status after each round.

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

        return _folder(run_local(request, out=out, watch=watch))
    from actors.driver import run_on_ray

    return _folder(run_on_ray(request, out=out, address=address, watch=watch))


def resume(
    path: str | Path,
    *,
    sets: Sequence[str] = (),
    accept_changes: bool = False,
    address: str | None = None,
    local: bool = False,
    watch: Watch | None = None,
) -> Run | Study:
    """Continue a run or a study from its last snapshot to its end.

    path: its folder, or its URI in object storage; sets: overrides of settings that may change, such as ["rounds=50"];
    accept_changes: whether it may go on though settings, data or code are not what it was made from; other arguments, return
    value and errors as in `run`.
    """
    if local:
        from rayfed.launch.start import resume_local

        return _folder(resume_local(path, sets=sets, accept_changes=accept_changes, watch=watch))
    from actors.driver import resume_on_ray

    return _folder(resume_on_ray(path, sets=sets, accept_changes=accept_changes, address=address, watch=watch))


def _folder(finished: Finished) -> Run | Study:
    for sentence in finished.given_up:
        warnings.warn(sentence, stacklevel=3)
    return load(finished.path)
