"""Use from Python: `rayfed.run`, `rayfed.resume`, `rayfed.load` (docs/python.md)."""

from __future__ import annotations

import json
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

Sets = Sequence[str] | Mapping[str, Any]
Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        from rayfed.storage.text_files import read_yaml

        return read_yaml(self.path / "config.yaml")

    @property
    def summary(self) -> dict[str, Any] | None:
        """summary.json; None while the run has not ended."""
        return _summary(self.path)

    def metrics(self) -> pyarrow.Table:
        """One row per committed round, column `round` from 1; null where a metric was not measured."""
        from rayfed.storage.run_folder import read_metrics

        return read_metrics(self.path)

    def clients(self, round: int | None = None) -> pyarrow.Table:
        """One row per client of an evaluated round, by default the newest. ConfigError if that round was not evaluated."""
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
        """Names of the saved models: "model" (the global one), "expert-0", ...; none before the run has ended."""
        from rayfed.served import names

        return names(self.path)

    def model(self, name: str = "model", *, cluster: int | None = None, client: int | None = None) -> Model:
        """A trained model: parameters by name, and `model(x)` gives logits (B, classes) of inputs (B, *input_shape).

        The global one, a cluster's expert, or what a client is served (held-out clients too; its data is split again for
        that). ConfigError naming what is there.
        """
        from rayfed.served import saved

        if client is not None:
            return self._served.model(client)
        return saved(self.path, self._config, name if cluster is None else f"expert-{cluster}")

    def save_adapter(self, client: int, folder: str | Path) -> Path:
        """Write the adapter that a client is served (held-out clients too) into a new folder and return it: in PEFT's format where
        PEFT knows the kind, a LoRA at the client's own rank and scale; with `head: mean` its classifier beside it, in
        head.safetensors, which `init.from` takes with the rest. ConfigError if there is no such client, the model has no
        adapter, or the folder holds something.
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
    """A study's folder, finished or not: every arm with every seed."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The study as it was written: base settings, seeds, arms, claim."""
        from rayfed.storage.text_files import read_yaml

        return read_yaml(self.path / "study.yaml")

    @property
    def summary(self) -> dict[str, Any] | None:
        """summary.json: each arm's final values over seeds and the verdict on the claim; None while the study has not ended."""
        return _summary(self.path)

    @property
    def arms(self) -> dict[str, dict[int, Run]]:
        """arm -> seed -> run, of the runs that have begun."""
        from rayfed.storage.study_folder import study_runs

        out: dict[str, dict[int, Run]] = {}
        for arm, seed, where in study_runs(self.path, self.config):
            here = out.setdefault(arm, {})
            if (where / "config.yaml").is_file():
                here[seed] = Run(where)
        return out

    def results(self) -> pyarrow.Table:
        """One row per arm, seed and committed round."""
        from rayfed.report.study import results
        from rayfed.report.subject import load_study

        return results(load_study(self.path))


def _summary(path: Path) -> dict[str, Any] | None:
    file = path / "summary.json"
    return json.loads(file.read_text()) if file.exists() else None


def load(path: str | Path) -> Run | Study:
    """The run or the study in a folder. ConfigError where there is none."""
    path = Path(path)
    if (path / "study.yaml").is_file():
        return Study(path)
    if (path / "config.yaml").is_file():
        return Run(path)
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() and not path.is_dir() else []
    raise ConfigError(
        f"{path}: neither a run folder (config.yaml) nor a study's (study.yaml){nearest(path.name, near)}"
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
    """Run a config (file, ready name or mapping) to its end and return its folder; a study's folder for a study.

    sets: overrides, ["method.clusters=4"] or {"method.clusters": 4}; in mappings, a class or function stands for a method,
    data or model of your own. local: in this process, without Ray; address: as `--address`; watch: is called with the live
    status after each round. Raises the errors of `rayfed.errors`.
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
    address: str | None = None,
    local: bool = False,
    watch: Watch | None = None,
) -> Run | Study:
    """Continue a run or a study from its last snapshot to its end, or beyond it: sets=["rounds=50"]. Arguments as in `run`."""
    if local:
        from rayfed.launch.start import resume_local

        return _folder(resume_local(path, sets=sets, watch=watch))
    from actors.driver import resume_on_ray

    return _folder(resume_on_ray(path, sets=sets, address=address, watch=watch))


def _folder(finished: Finished) -> Run | Study:
    return load(finished.path)
