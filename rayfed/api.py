"""Use from Python: `rayfed.run`, `rayfed.load`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow

    from rayfed.tree import Tree


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        import yaml

        return yaml.safe_load((self.path / "config.yaml").read_text())

    @property
    def summary(self) -> dict[str, Any] | None:
        """summary.json; None while the run has not ended."""
        file = self.path / "summary.json"
        return json.loads(file.read_text()) if file.exists() else None

    def metrics(self) -> pyarrow.Table:
        """One row per committed round, column `round` from 1; null where a metric was not measured."""
        from rayfed.folder import RunFolder

        return RunFolder(self.path, 0).metrics()

    def model(self, name: str = "model") -> Tree:
        """Parameters of a finished run as tensors: "model" (the global one), or "expert-0", ... Raises ConfigError naming what is there."""
        from rayfed import tree
        from rayfed.snapshot import load_tree

        there = sorted({f.name.split(".")[0] for f in (self.path / "model").glob("*.safetensors")})
        if name not in there:
            raise ConfigError(
                f"{self.path}: no model {name!r}; there are: {', '.join(there) or 'none (the run has not ended)'}"
            )
        return tree.from_numpy(load_tree(self.path / "model", name))


def load(path: str | Path) -> Run:
    """A run folder. Raises ConfigError where there is none."""
    if not (Path(path) / "config.yaml").exists():
        raise ConfigError(f"{path}: not a run folder (no config.yaml)")
    return Run(Path(path))


def run(
    config: str | Path | Mapping[str, Any],
    *,
    sets: Sequence[str] = (),
    out: str | Path | None = None,
    address: str | None = None,
    local: bool = False,
) -> Run:
    """Run a config (file, ready name or mapping) to its end and return its folder; a study's folder for a study.

    local: in this process, without Ray; address: as `--address`. Raises the errors of `rayfed.errors`.
    """
    from rayfed.config import load_config

    request = load_config(config, sets)
    if local:
        from rayfed.launch import run_local

        return Run(run_local(request, out=out).path)
    from actors.driver import run as run_on_ray

    return Run(run_on_ray(request, out=out, address=address).path)
