"""Executes the studies of claims: one after another, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rayfed.config.schema import Study
from rayfed.errors import ConfigError, RunFailed
from rayfed.storage.text_files import yaml_bytes

T = TypeVar("T")
# (study, folder of studies) -> (its folder, its summary)
RunStudy = Callable[[Study, Path], tuple[Path, dict[str, Any]]]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Ran(NamedTuple):
    """A study that was run: its folder and the status of its summary, or the error in which it ended."""

    path: Path | None
    status: str = ""
    error: ConfigError | RunFailed | None = None

    @property
    def diverged(self) -> bool:
        """Whether training left the finite numbers."""
        return isinstance(self.error, RunFailed) and self.error.diverged is not None

    @property
    def folder(self) -> Path:
        """The study's folder. Raises the error where there is one."""
        if self.error is not None:
            raise self.error
        assert self.path is not None
        return self.path


# studies and the folder of studies -> what became of each, in the same order
RunStudies = Callable[[Sequence[Study], Path], list[Ran]]


def one_by_one(run_study: RunStudy) -> RunStudies:
    """Return what runs studies one after another; errors of one do not end the others."""
    return lambda studies, out: [_ran(partial(run_study, study, out)) for study in studies]


@contextmanager
def in_processes(jobs: int) -> Iterator[RunStudies]:
    """Yield what runs studies in this many processes at a time, one thread each, without Ray."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # is read when the processes import torch
    try:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            yield lambda studies, out: list(pool.map(_run_here, studies, [out] * len(studies)))
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def run_local_study(
    study: Study, out: Path, watch: Callable[[dict[str, Any]], None] | None = None
) -> tuple[Path, dict[str, Any]]:
    """Run a study in this process, or continue the one with the same settings in `out`; no reports are written."""
    from rayfed.launch.start import resume_local, run_local

    before = find_study(study, out)
    proceed = partial(resume_local, before) if before else partial(run_local, study, out=out)
    done = proceed(watch=watch, own_process=True, reports=False)
    return done.path, done.summary


def _run_here(study: Study, out: Path) -> Ran:
    return _ran(partial(run_local_study, study, out))


def _ran(work: Callable[[], tuple[Path, Mapping[str, Any]]]) -> Ran:
    try:
        path, summary = work()
    except (ConfigError, RunFailed) as error:
        return Ran(None, error=error)
    return Ran(path, str(summary["status"]))


def find_study(study: Study, out: Path) -> Path | None:
    """Return the newest folder in `out` of a study with the same settings; None if there is none."""
    wanted = yaml_bytes(study.to_dict())
    same = [p.parent for p in out.glob(f"{study.base.name}-*/study.yaml") if p.read_bytes() == wanted]
    return max(same, key=lambda p: p.stat().st_mtime, default=None)
