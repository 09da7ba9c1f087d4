"""Commands that use a cluster's Jobs API: submit, status, logs, stop and fetch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayfed.cli.options import AcceptChanges, ConfigName, Dashboard, Job, Json, NoWait, ScaleUp, Sets, Shared, StoredIn
from rayfed.errors import ConfigError

if TYPE_CHECKING:
    from actors.jobs.connection import Connection
    from actors.jobs.states import JobRow, JobState

submit = typer.Typer(no_args_is_help=True, help="Run or sweep on a cluster, as a job that needs no terminal.")


@submit.command("run")
def submit_run(
    config: ConfigName,
    sets: Sets = None,
    out: StoredIn = None,
    address: Dashboard = None,
    shared: Shared = None,
    scale_up: ScaleUp = 0.0,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Run an experiment or a study on a cluster."""
    from actors.jobs.submission import submit_request

    more = ("--scale-up", f"{scale_up:g}") if scale_up else ()
    options: dict[str, Any] = {"out": out, "address": address, "shared": shared or (), "options": more}
    _follow(*submit_request(config, sets or (), command="run", **options), no_wait, as_json)


@submit.command("sweep", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit_sweep(
    context: typer.Context,
    spaces: Annotated[str, typer.Argument(metavar="SPACE[,SPACE...]", help="Names of spaces, or files.")],
    config: ConfigName,
    sets: Sets = None,
    out: StoredIn = None,
    address: Dashboard = None,
    shared: Shared = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Search a space on a cluster; takes the options of `rayfed sweep`."""
    from actors.jobs.submission import submit_request

    options: dict[str, Any] = {"out": out, "address": address, "shared": shared or (), "options": context.args}
    _follow(*submit_request(config, sets or (), command="sweep", spaces=spaces, **options), no_wait, as_json)


@submit.command("resume")
def submit_resume(
    run: Annotated[
        str, typer.Argument(help="A job that has ended; or a folder on the head; or a URI in object storage.")
    ],
    sets: Sets = None,
    accept_changes: AcceptChanges = False,
    address: Dashboard = None,
    scale_up: ScaleUp = 0.0,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Continue a run, a study or a sweep on a cluster, in its own folder."""
    from actors.jobs.submission import submit_resume

    more = (*(["--scale-up", f"{scale_up:g}"] if scale_up else []), *(["--accept-changes"] if accept_changes else []))
    _follow(*submit_resume(run, sets or (), address=address, options=more), no_wait, as_json)


def _follow(connection: Connection, job: str, no_wait: bool, as_json: bool) -> None:
    """Print a job's progress until it ends, and exit with its code; with `no_wait` only its name."""
    from actors.jobs.follow import follow_job

    about = {"job": job, "address": connection.url}
    if no_wait:
        hint = f"{job} is submitted. Follow it with: rayfed logs -f {job}; fetch its folder with: rayfed fetch {job}"
        typer.echo(json.dumps({**about, "status": "pending"}) if as_json else hint)
        return
    if not as_json:
        typer.echo(f"job {job} on {connection.url}")
    code = follow_job(connection, job, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({**about, "status": connection.read_job(job).standing, "exit_code": code}))
    elif not code:
        typer.echo(f"fetch its folder with: rayfed fetch {job}")
    raise typer.Exit(code)


def status(
    job: Annotated[str | None, typer.Argument(help="A job's name; default: a list of all.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until nothing runs any more.")] = False,
    address: Dashboard = None,
    as_json: Json = False,
) -> None:
    """List the jobs of a cluster, or show one job's live state."""
    from actors.jobs.connection import Connection
    from actors.jobs.states import list_states, read_state

    if watch and as_json:
        raise ConfigError("status: --watch is for people, --json for scripts; leave one out")
    connection = Connection(address)
    if as_json:
        found = (
            [row.to_json() for row in list_states(connection)] if job is None else read_state(connection, job).to_json()
        )
        typer.echo(json.dumps(found, indent=1))
        return

    def look() -> tuple[str, bool]:
        if job is None:
            rows = list_states(connection)
            return _jobs_text(rows, connection.url), any(not row.job.status.ended for row in rows)
        about = read_state(connection, job)
        return _state_text(job, about), about.exit_code is None

    if not watch:
        typer.echo(look()[0])
        return
    from rayfed.launch.live import keep_showing

    keep_showing(look)


def _state_text(job: str, about: JobState) -> str:
    from rayfed.launch.progress import line

    stored = f", stored in {about.out}" if "://" in about.out else ""
    return f"{job}: {about.status}  {line(about.state) if about.state else 'no round yet'}\n{about.path} on the head{stored}"


def _jobs_text(rows: list[JobRow], url: str) -> str:
    lines = []
    for row in rows:
        about = row.job.metadata
        per_round, clients, rounds = ("?" if n is None else n for n in (about.per_round, about.clients, about.rounds))
        runs = f"  {about.runs} runs" if (about.runs or 1) > 1 else ""
        people, progress = f"{per_round} of {clients} clients", f"round {row.round}/{rounds}{runs}"
        lines.append(f"{row.job.name:40} {about.method or '':18} {people}  {progress}  {row.job.standing}")
    return "\n".join(lines) or f"no jobs on {url}"


def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="As it grows, to the job's end.")] = False,
    address: Dashboard = None,
) -> None:
    """Print a job's output; with -f, its live progress, and its exit code at the end."""
    from actors.jobs.connection import Connection
    from actors.jobs.follow import follow_job

    connection = Connection(address)
    connection.find_job(job)
    if follow:
        raise typer.Exit(follow_job(connection, job))
    typer.echo(connection.read_log(job), nl=False)


def stop(
    job: Job,
    now: Annotated[bool, typer.Option("--now", help="At once, without committing the current round.")] = False,
    address: Dashboard = None,
    as_json: Json = False,
) -> None:
    """End a job after its current round has been committed."""
    from actors.jobs.connection import Connection
    from actors.jobs.stop import stop_job

    connection = Connection(address)
    message = stop_job(connection, job, now=now)
    typer.echo(json.dumps({"job": job, "status": connection.read_job(job).standing}) if as_json else message)


def fetch(
    job: Job,
    out: Annotated[Path, typer.Option("--out", help="Folder of run folders here.")] = Path("runs"),
    address: Dashboard = None,
    as_json: Json = False,
) -> None:
    """Copy a job's run folder to this machine, completely or not at all."""
    from actors.jobs.connection import Connection
    from actors.jobs.fetch import fetch_folder

    path = fetch_folder(Connection(address), job, out)
    typer.echo(json.dumps({"job": job, "path": str(path)}) if as_json else str(path))
