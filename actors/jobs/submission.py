"""Submitting: `rayfed submit run | sweep | resume` as a job on the head. Everything is checked before anything is sent."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from actors.jobs import head_program
from actors.jobs.connection import Connection
from actors.jobs.head import probe_environment
from actors.jobs.head_program import Environment
from actors.jobs.job import KIND, NAME, JobMetadata, SubmittedJob, parse_count
from actors.jobs.package import CONFIG, Package, pack
from rayfed.errors import ConfigError, PlacementError, nearest
from rayfed.storage import object_store
from rayfed.storage.new_folder import new_id

if TYPE_CHECKING:
    from rayfed.config.schema import Config, Study

STOPPING_S = 7 * 86400  # Ray kills a stopped job after so many seconds; the current round may take long
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")
PASSED_ON = ("RAYFED_TAKE_OVER",)  # variables of this process that the job gets too


def submit_request(
    config: str,
    sets: Sequence[str],
    *,
    command: str,
    spaces: str | None = None,
    options: Sequence[str] = (),
    out: str | None,
    address: str | None,
    shared: Sequence[Path] = (),
) -> tuple[Connection, str]:
    """Submit `rayfed COMMAND [SPACES] CONFIG --set SETS OPTIONS --out OUT`.

    Arguments:
        config: a file, or the name of a ready config.
        command: run | sweep.
        spaces: of a sweep, separated by commas.
        options: further ones of the command.
        out: folder on the head, or URI; the config's `storage.path` by default.
        shared: folders that every node sees under the same path, from which nothing travels.

    Returns the connection and the job's name, which is also the run folder's. Raises ConfigError before the cluster is asked,
    PlacementError where the head cannot run the project.
    """
    from rayfed.config.schema import Config
    from rayfed.launch.preflight import load_request

    request = load_request(config, sets)
    base = request if isinstance(request, Config) else request.base
    files = [s for s in (spaces or "").split(",") if s.endswith(".py")]
    if missing := [f for f in files if not Path(f).is_file()]:
        raise ConfigError([f"space {f!r}: no such file" for f in missing])
    package = pack(request, files=files, shared=shared)
    names = ",".join(f"spaces/{Path(s).name}" if s in files else s for s in spaces.split(",")) if spaces else None
    connection = Connection(address)
    arguments = [*([names] if names else []), CONFIG, *options]
    return connection, submit_package(connection, request, package, command, arguments, out or base.storage.path)


def submit_package(
    connection: Connection,
    request: Config | Study,
    package: Package,
    command: str,
    arguments: Sequence[str],
    out: str,
) -> str:
    """Send a package and start `rayfed COMMAND ARGUMENTS` there; return the job's name."""
    name = new_id(str(package.config.get("name") or "run"))
    metadata = describe_request(request, run=name, out=out, command=command)
    return _start_job(connection, name, package, entrypoint(command, arguments, out), metadata)


def submit_resume(
    where: str, sets: Sequence[str], *, address: str | None, options: Sequence[str] = ()
) -> tuple[Connection, str]:
    """Continue a run, study or sweep in its own folder, by a new job NAME-2, NAME-3 ...

    Arguments:
        where: the job that made it, or a folder on the head (relative as `--out`), or a URI.
        sets: overrides of what may change, as `rayfed resume` takes them.

    Returns the connection and the new job's name. Raises ConfigError where there is no such job, where it is still at work, or
    where data that was sent with it, and is sent again from where it was, is not there any more.
    """
    connection = Connection(address)
    known, package = connection.list_jobs(), Package({})
    if where in known:
        metadata = known[where].metadata
        _refuse_while_running(where, known)
        folder = (
            object_store.join_uri(metadata.out, metadata.run)
            if object_store.is_uri(metadata.out)
            else f"{metadata.out}/{metadata.run}"
        )
        package.folders = {n: Path(p) for n, p in metadata.folders.items()}
        if missing := [p for p in package.folders.values() if not p.exists()]:
            raise ConfigError(
                [f"submit resume {where}: {p} travelled with the job and is not here any more" for p in missing]
            )
    elif object_store.is_uri(where) or "/" in where:
        folder = where.rstrip("/")
        path = folder.partition("?")[0]
        out, _, run = path.rpartition("/")
        metadata = JobMetadata(run=run, out=out + folder[len(path) :])
    else:
        raise ConfigError(
            f"submit resume: {connection.url} has no job {where!r}{nearest(where, known)}; "
            "a folder on the head is written with a /, like runs/NAME-ID"
        )
    longer = [parse_count(value) for key, _, value in (s.partition("=") for s in sets) if key == "rounds"]
    rounds = longer[-1] if longer else metadata.rounds
    metadata = replace(metadata, command="resume", rounds=rounds)
    name = next(n for i in itertools.count(2) if (n := f"{metadata.run}-{i}") not in known)
    arguments = [part for s in sets for part in ("--set", s)] + list(options)
    entry = f"exec python -m rayfed resume {quote_out(folder)} {shlex.join(arguments)}".rstrip()
    return connection, _start_job(connection, name, package, entry, metadata)


def _refuse_while_running(name: str, known: Mapping[str, SubmittedJob]) -> None:
    run = known[name].metadata.run
    live = [j.name for j in known.values() if j.metadata.run == run and not j.status.ended]
    if live:
        raise ConfigError(f"submit resume {name}: {live[0]} is still at work on it; end it with: rayfed stop {live[0]}")


def _start_job(connection: Connection, name: str, package: Package, entry: str, metadata: JobMetadata) -> str:
    """Send a package, with the project where the head lacks it, and start the job in its folder."""
    from rayfed import track

    ship = needs_project(probe_environment(connection, requirements()), connection.url)
    variables = {
        **{k: v for k, v in track.environment().items() if not SECRET.search(k)},
        **{k: os.environ[k] for k in PASSED_ON if k in os.environ},
        "RAYFED_RUN_ID": metadata.run,
        "PYTHONUNBUFFERED": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOPPING_S),
    }
    if package.folders:
        metadata = replace(metadata, folders={n: str(p) for n, p in package.folders.items()})
    with tempfile.TemporaryDirectory() as folder:
        package.write(Path(folder), project=ship)
        return connection.submit_job(
            entrypoint=entry,
            submission_id=name,
            runtime_env={"working_dir": folder, "env_vars": variables},
            metadata={KIND: "job", NAME: name, **metadata.to_ray()},
        )


def needs_project(there: Environment, where: str) -> bool:
    """Return whether the head lacks exactly these sources. Raises PlacementError where its Python cannot run the project.

    where: the head's URL, for messages.
    """
    here = head_program.describe_environment()
    _refuse_other_version(where, "Python", there.python, here.python)
    if there.ray is None:
        raise PlacementError(
            f"{where}: the head's `python` ({there.python}) has no Ray; start the head inside its environment"
        )
    _refuse_other_version(where, "Ray", there.ray, str(here.ray))
    if there.missing:
        names = there.missing
        raise PlacementError(
            f"{where}: the head's Python lacks {', '.join(names)}; install there: pip install {' '.join(names)}"
        )
    return there.project != here.project


def _refuse_other_version(where: str, what: str, theirs: str, ours: str) -> None:
    """Raise PlacementError where major or minor version differ."""
    if ours.split(".")[:2] != theirs.split(".")[:2]:
        wanted = ".".join(theirs.split(".")[:2])
        raise PlacementError(
            f"{where}: {what} {theirs} there, {what} {ours} here; submit from an environment with {what} {wanted}"
        )


def requirements() -> list[str]:
    """Return the names of the distributions that the project needs."""
    try:
        lines = importlib.metadata.requires("rayfed-engine") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [m[0] for line in lines if ";" not in line and (m := re.match(r"[\w.-]+", line))]


def describe_request(request: Config | Study, *, run: str, out: str, command: str) -> JobMetadata:
    """Note what the list of jobs shows of a request."""
    configs = [c for _, _, c in request.runs()] if hasattr(request, "runs") else [request]
    base = configs[0]
    return JobMetadata(
        run=run,
        out=out,
        command=command,
        method=", ".join(dict.fromkeys(c.method.name for c in configs)),
        clients=base.federation.clients,
        per_round=base.per_round(),
        rounds=base.rounds,
        runs=len(configs),
    )


def entrypoint(command: str, arguments: Sequence[str], out: str) -> str:
    """Write the job's command line: `exec python -m rayfed run config.yaml --out ...`."""
    return f"exec python -m rayfed {command} {shlex.join(arguments)} --out {quote_out(out)}"


def quote_out(out: str) -> str:
    """Quote `--out` for the head's shell; a relative path starts at $RAYFED_HOME, or home."""
    if object_store.is_uri(out) or out.startswith("/"):
        return shlex.quote(out)
    return '"${RAYFED_HOME:-$HOME}"/' + shlex.quote(out)
