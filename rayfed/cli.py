"""The command line: parse, call, print."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rayfed.errors import ConfigError, RayfedError, nearest

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated-learning experiments on Ray.",
)

Sets = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Local = Annotated[bool, typer.Option("--local", help="In this process, without Ray.")]
Address = Annotated[str | None, typer.Option("--address", help="local | auto | ADDRESS of a Ray cluster.")]
ScaleUp = Annotated[
    float,
    typer.Option("--scale-up", metavar="SECONDS", help="Ask the cluster's autoscaler for what is missing, and wait."),
]


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="A file, or the name of a ready config.")],
    sets: Sets = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder of run folders (overrides storage.path).")] = None,
    address: Address = None,
    scale_up: ScaleUp = 0.0,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Run an experiment or a study to its end."""
    from rayfed.config.schema import load_config

    request = load_config(config, sets or ())
    with _progress(as_json) as progress:
        if local:
            from rayfed.launch.start import run_local

            done = run_local(request, out=out, watch=progress.update)
        else:
            from actors.driver import run as run_on_ray

            done = run_on_ray(request, out=out, address=address, scale_up=scale_up, watch=progress.update)
    _finished(done, as_json)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="Folder of a run, a study or a sweep, or its URI in object storage.")],
    sets: Sets = None,
    address: Address = None,
    scale_up: ScaleUp = 0.0,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Continue a run where its last snapshot left it; --set rounds=N makes it longer."""
    if _is_sweep(run):
        from tune_spaces.sweep.driver import resume as resume_sweep

        if given := [o for o, v in (("--set", sets), ("--scale-up", scale_up), ("--local", local)) if v]:
            raise ConfigError(f"resume: a sweep goes on as it was started; leave out {', '.join(given)}")
        with _progress(as_json) as progress:
            swept = resume_sweep(run, address=address, watch=progress.update)
        _finished(swept, as_json)
        return
    with _progress(as_json) as progress:
        if local:
            from rayfed.launch.start import resume_local

            done = resume_local(run, sets=sets or (), watch=progress.update)
        else:
            from actors.driver import resume as resume_on_ray

            done = resume_on_ray(run, sets=sets or (), address=address, scale_up=scale_up, watch=progress.update)
    _finished(done, as_json)


@app.command()
def validate(config: str, sets: Sets = None, as_json: Json = False) -> None:
    """Print the resolved config, or everything that is wrong with it."""
    from rayfed.config.schema import load_config

    d = load_config(config, sets or ()).to_dict()
    typer.echo(json.dumps(d, indent=1) if as_json else _yaml(d), nl=as_json)


@app.command()
def partition(
    config: Annotated[str, typer.Argument(help="A file, or the name of a ready config; of a study, every split.")],
    sets: Sets = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The split of this seed.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.png", help="The picture; default NAME-partition.png here.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for scripts; a picture only where --out says so.")
    ] = False,
) -> None:
    """Who holds what: a split in numbers and as a picture."""
    from rayfed.config.schema import Config, load_config
    from rayfed.partition.describe import describe
    from rayfed.report import partition_plot

    request = load_config(config, sets or ())
    name = request.name if isinstance(request, Config) else request.base.name
    file = out or Path(f"{name}-partition.png")
    partition_plot.check(file)
    found = describe(request, seed)
    if out is not None or not as_json:
        partition_plot.write(found, file)
    if as_json:
        picture = None if out is None else str(file)
        typer.echo(json.dumps({"picture": picture, "splits": [d.to_dict() for d in found]}, indent=1))
        return
    typer.echo("\n\n".join(d.text() for d in found) + f"\n\npicture: {file}")


@app.command()
def cp(name: str, file: Path, force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False) -> None:
    """Copy a ready config to a file of your own."""
    from rayfed.config.load import READY, ready

    if name not in ready():
        raise ConfigError(f"cp: no ready config {name!r}{nearest(name, ready())}; ready: {', '.join(ready())}")
    if file.exists() and not force:
        raise ConfigError(f"cp: {file} exists; --force overwrites it")
    shutil.copyfile(READY / f"{name}.yaml", file)
    typer.echo(f"{file}: edit it, then: rayfed run {file}")


@app.command()
def methods(name: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """List the methods, or show one: paper, formula, wire, settings."""
    from rayfed import methods as registry

    if name is None:
        about = {n: _first_line(registry.get(n)) for n in registry.names()}
        typer.echo(json.dumps(about, indent=1) if as_json else "\n".join(f"{n:18} {t}" for n, t in about.items()))
        return
    cls = registry.get(name)
    settings = {
        n: {
            "type": str(f.annotation).replace("typing.", ""),
            "default": f.get_default(call_default_factory=True),
            "about": f.description or "",
        }
        for n, f in cls.Settings.model_fields.items()
    }
    from rayfed.launch.claims import numbers, of_method

    wire = {side: {n: p._asdict() for n, p in getattr(cls.wire, side).items()} for side in cls.wire._fields}
    if as_json:
        typer.echo(
            json.dumps(
                {"name": name, "doc": cls.__doc__, "settings": settings, "wire": wire, "claims": of_method(name)},
                indent=1,
                default=str,
            )
        )
        return
    import inspect

    typer.echo(f"{name}\n\n{inspect.cleandoc(cls.__doc__ or '')}\n\nSettings")
    for n, s in settings.items():
        typer.echo(f"  {n} = {s['default']!r}  ({s['type']})\n      {s['about']}")
    for i, r in enumerate(of_method(name)):
        typer.echo(
            ("\nClaims\n" if not i else "") + f"  {r['verdict']}: {r['about']} ({r['study']})\n      {numbers(r)}"
        )
    typer.echo("\nWire")
    for side, parts in wire.items():
        for n, p in parts.items():
            typer.echo(f"  {side:7} {n}: {p['like']}{'  (' + p['note'] + ')' if p['note'] else ''}")


@app.command()
def tasks(name: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """List data sets and models."""
    from rayfed import data, models

    known = {"data": dict(data.names()), "model": dict(models.names())}
    if name is not None:
        known = {k: {n: t for n, t in v.items() if n == name} for k, v in known.items()}
        if not any(known.values()):
            every = [n for n, _ in (*data.names(), *models.names())]
            raise ConfigError(f"tasks: {name!r} is unknown{nearest(name, every)}; known: {', '.join(every)}")
    if as_json:
        typer.echo(json.dumps(known, indent=1))
        return
    for kind, entries in known.items():
        for n, text in entries.items():
            typer.echo(f"{kind:6} {n:26} {text}")


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder of run folders.")] = Path("runs"), as_json: Json = False
) -> None:
    """List runs, studies and sweeps, and how each stands."""
    from rayfed.storage.listing import runs as find

    if not folder.is_dir():
        raise ConfigError(f"runs: {folder} is not a folder")
    found = find(folder)
    if as_json:
        typer.echo(json.dumps(found, indent=1, default=str))
        return
    for r in found:
        more = f"{r['trials']['complete']}/{r['trials']['planned']} trials  " if r["kind"] == "sweep" else ""
        more += f"best {r['metric']} {r['best']:.4f}  " if r.get("best") is not None else ""
        typer.echo(
            f"{r['name']:40} {r['kind']:6} {r['method'] or '':18} {r['round']}/{r['rounds']}  {more}{r['status']}"
        )
    if not found:
        typer.echo(f"no runs in {folder}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run or study folders; several are compared on one page.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File of the page that compares; default: compare-IDS.html here.")
    ] = None,
) -> None:
    """Write report.html again, or a page that compares several, and print its path."""
    from rayfed.report import write_comparison, write_report

    kinds = ("config.yaml", "study.yaml", *(["sweep.yaml"] if len(runs) == 1 else []))
    missing = [str(r) for r in runs if not any((r / k).exists() for k in kinds)]
    if missing:
        raise ConfigError([f"report: {m} is not a run or a study folder" for m in missing])
    if out is not None and len(runs) == 1:
        raise ConfigError(f"report: --out {out} is for a page that compares; the report of {runs[0]} goes into it")
    typer.echo(str(write_report(runs[0]) if len(runs) == 1 else write_comparison(runs, out)))


@app.command()
def claims(
    names: Annotated[list[str] | None, typer.Argument(help="Files of benchmarks/claims; default: all.")] = None,
    shelf: Annotated[Path | None, typer.Option("--shelf", help="Folder of the data shelf (RAYFED_SHELF).")] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of their study folders; what is done there is kept.")
    ] = Path("runs/claims"),
    address: Address = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Run and judge the claims of a checkout; rewrites benchmarks/CLAIMS.md and the shipped verdicts."""
    from rayfed.launch import claims as table

    def runs(study: Any, where: Path) -> tuple[Path, dict[str, Any]]:
        before = table.found(study, where)
        with _progress(as_json) as progress:
            how: dict[str, Any] = {"watch": progress.update} | ({} if local else {"address": address})
            if local:
                from rayfed.launch.start import resume_local as again
                from rayfed.launch.start import run_local as start
            else:
                from actors.driver import resume as again
                from actors.driver import run as start
            done = again(before, **how) if before else start(study, out=where, **how)
        return done.path, done.summary

    done = table.run(names or (), runs, out=out, shelf=shelf, told=lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps(done, indent=1))
        return
    for name, entry in done.items():
        for r in entry["results"]:
            typer.echo(f"{r['verdict']:20} {name}: {r['about']}\n{'':20} {table.numbers(r)}")


@app.command()
def sweep(
    spaces: Annotated[
        str | None, typer.Argument(metavar="SPACE[,SPACE...]", help="Ready spaces or files of yours, multiplied.")
    ] = None,
    config: Annotated[str | None, typer.Argument(help="A file, or the name of a ready config.")] = None,
    sets: Sets = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder of the sweep's folder (storage.path).")] = None,
    search: Annotated[
        str | None, typer.Option("--search", help="grid | random | optuna; default: grid where the space has one.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Points of a search that draws them (10).")] = None,
    scheduler: Annotated[str, typer.Option("--scheduler", help="none | asha | pbt.")] = "none",
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,2", help="Of every point; default: the config's.")
    ] = None,
    metric: Annotated[
        str, typer.Option("--metric", metavar="NAME/SCOPE", help="What trials are judged by.")
    ] = "accuracy/global",
    concurrent: Annotated[
        int | None, typer.Option("--concurrent", help="Trials at a time; default: what fits.")
    ] = None,
    arm: Annotated[str | None, typer.Option("--arm", help="Which arm, where the config is a study.")] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse/--no-reuse", help="Trials share processes, one after another.")
    ] = True,
    address: Address = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="DIR", help="Continue a sweep: its folder, or its URI.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search a space: which clusters, ranks, heterogeneity ... are best (docs/sweeps.md)."""
    from tune_spaces.sweep import driver

    given = [o for o, v in (("SPACE", spaces), ("CONFIG", config), ("--set", sets), ("--out", out)) if v is not None]
    if resume is not None and given:
        raise ConfigError(f"sweep --resume: a sweep goes on as it was started; leave out {', '.join(given)}")
    if resume is None and (spaces is None or config is None):
        from tune_spaces.sweep.points import ready

        known = "\n".join(f"  {n:14} {t}" for n, t in ready().items())
        raise ConfigError(f"sweep: rayfed sweep SPACE[,SPACE...] CONFIG, or --resume DIR; ready spaces:\n{known}")
    with _progress(as_json) as progress:
        how: dict[str, Any] = {"address": address, "watch": progress.update}
        if resume is not None:
            done = driver.resume(resume, **how)
        else:
            asked = driver.Options(search, samples, scheduler, driver.numbers(seeds), metric, concurrent, reuse)
            made = driver.prepare(str(spaces).split(","), str(config), asked, sets or (), arm)
            done = driver.run(made, out=out, command=driver.command_line(), **how)
    _finished(done, as_json)


@app.command()
def monitor(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of run folders.")] = Path("runs"),
    serve: Annotated[bool, typer.Option("--serve", help="A live page of the runs, for this machine only.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the page; 0 takes a free one.")] = 8270,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write Prometheus' config and a Grafana dashboard there."),
    ] = None,
) -> None:
    """Watch runs: --serve shows a live page, --out DIR writes files for Prometheus and Grafana."""
    from rayfed import monitor as watch

    if not serve and out is None:
        raise ConfigError(
            "monitor: nothing to do; --serve shows a live page, --out DIR writes Prometheus and Grafana files"
        )
    if serve and not folder.is_dir():
        raise ConfigError(f"monitor: {folder} is not a folder")
    page = watch.Server(folder, port) if serve else None
    if out is not None:
        typer.echo(watch.how_to_start(watch.write_files(out, port)))
    if page is not None:
        typer.echo(f"{page.url} shows {folder}; Ctrl-C ends it")
        page.forever()


Head = Annotated[
    str | None, typer.Option("--address", help="The head's dashboard, http://HEAD:8265; default: RAY_ADDRESS.")
]
Job = Annotated[str, typer.Argument(help="A job's name, as `rayfed status` lists it.")]
Shared = Annotated[
    list[Path] | None,
    typer.Option("--shared", metavar="DIR", help="Every node sees DIR under this path: nothing in it travels."),
]
Out = Annotated[
    str | None, typer.Option("--out", help="Folder on the head, or object storage (overrides storage.path).")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not follow: print the job's name.")]
submit = typer.Typer(no_args_is_help=True, help="Run or sweep on a cluster, as a job that needs no terminal.")
app.add_typer(submit, name="submit")


@submit.command("run")
def submit_run(
    config: Annotated[str, typer.Argument(help="A file, or the name of a ready config.")],
    sets: Sets = None,
    out: Out = None,
    address: Head = None,
    shared: Shared = None,
    scale_up: ScaleUp = 0.0,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Run an experiment or a study on a cluster."""
    from actors import jobs

    more = ("--scale-up", f"{scale_up:g}") if scale_up else ()
    how: dict[str, Any] = {"out": out, "address": address, "shared": shared or (), "more": more}
    _follow(*jobs.request(config, sets or (), command="run", **how), no_wait, as_json)


@submit.command("sweep", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit_sweep(
    context: typer.Context,
    spaces: Annotated[str, typer.Argument(metavar="SPACE[,SPACE...]", help="Names of spaces, or files.")],
    config: Annotated[str, typer.Argument(help="A file, or the name of a ready config.")],
    sets: Sets = None,
    out: Out = None,
    address: Head = None,
    shared: Shared = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Search a space on a cluster; takes the options of `rayfed sweep`."""
    from actors import jobs

    how: dict[str, Any] = {"out": out, "address": address, "shared": shared or ()}
    sent = jobs.request(config, sets or (), command="sweep", spaces=spaces, more=context.args, **how)
    _follow(*sent, no_wait, as_json)


@submit.command("resume")
def submit_resume(
    run: Annotated[
        str, typer.Argument(help="A job that has ended; or a folder on the head; or a URI in object storage.")
    ],
    sets: Sets = None,
    address: Head = None,
    scale_up: ScaleUp = 0.0,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Continue a run, a study or a sweep on a cluster, where it lies."""
    from actors import jobs

    more = ("--scale-up", f"{scale_up:g}") if scale_up else ()
    _follow(*jobs.again(run, sets or (), address=address, more=more), no_wait, as_json)


def _follow(cluster: Any, job: str, no_wait: bool, as_json: bool) -> None:
    from actors import jobs

    about = {"job": job, "address": cluster.url}
    if no_wait:
        hint = f"{job} is submitted. Follow it with: rayfed logs -f {job}; bring it home with: rayfed fetch {job}"
        typer.echo(json.dumps({**about, "status": "pending"}) if as_json else hint)
        return
    if not as_json:
        typer.echo(f"job {job} on {cluster.url}")
    code = jobs.follow(cluster, job, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({**about, "status": jobs.standing(cluster.info(job)), "exit_code": code}))
    elif not code:
        typer.echo(f"bring it home with: rayfed fetch {job}")
    raise typer.Exit(code)


@app.command()
def status(
    job: Annotated[str | None, typer.Argument(help="A job's name; default: a list of all.")] = None,
    address: Head = None,
    as_json: Json = False,
) -> None:
    """The jobs of a cluster, or one job's live state."""
    from actors import jobs
    from rayfed.launch.progress import line

    cluster = jobs.Cluster(address)
    if job is not None:
        about = jobs.state(cluster, job)
        if as_json:
            typer.echo(json.dumps(about, indent=1))
            return
        typer.echo(f"{job}: {about['status']}  {line(about['state']) if about['state'] else 'no round yet'}")
        typer.echo(f"{about['path']} on the head" + (f", stored in {about['out']}" if "://" in about["out"] else ""))
        return
    found = jobs.status(cluster)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for r in found:
        people = f"{r.get('per_round', '?')} of {r.get('clients', '?')} clients"
        runs = f"  {r['runs']} runs" if r.get("runs", 1) > 1 else ""
        typer.echo(
            f"{r['job']:40} {r['method'] or '':18} {people}  round {r['round']}/{r.get('rounds', '?')}{runs}  {r['status']}"
        )
    if not found:
        typer.echo(f"no jobs on {cluster.url}")


@app.command()
def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="As it grows, to the job's end.")] = False,
    address: Head = None,
) -> None:
    """What a job has printed; with -f, its live progress, and its exit code at the end."""
    from actors import jobs

    cluster = jobs.Cluster(address)
    cluster.job(job)
    if follow:
        raise typer.Exit(jobs.follow(cluster, job))
    typer.echo(cluster.log(job), nl=False)


@app.command()
def stop(
    job: Job,
    now: Annotated[bool, typer.Option("--now", help="At once, without committing the round in hand.")] = False,
    address: Head = None,
    as_json: Json = False,
) -> None:
    """End a job after its round in hand has been committed."""
    from actors import jobs

    cluster = jobs.Cluster(address)
    said = jobs.stop(cluster, job, now=now)
    typer.echo(json.dumps({"job": job, "status": jobs.standing(cluster.info(job))}) if as_json else said)


@app.command()
def fetch(
    job: Job,
    out: Annotated[Path, typer.Option("--out", help="Folder of run folders here.")] = Path("runs"),
    address: Head = None,
    as_json: Json = False,
) -> None:
    """Bring a job's run folder home, whole or not at all."""
    from actors import jobs

    path = jobs.fetch(jobs.Cluster(address), job, out)
    typer.echo(json.dumps({"job": job, "path": str(path)}) if as_json else str(path))


def _is_sweep(where: str) -> bool:
    from rayfed.storage import object_store

    if not object_store.is_uri(where) or object_store.wrong(where):
        return (Path(where) / "sweep.yaml").is_file()
    last = object_store.newest(*object_store.filesystem(where))
    return bool(last) and "sweep.yaml" in (last or {})["files"]


def _progress(as_json: bool) -> Any:
    from rayfed.launch.progress import Progress

    return Progress(quiet=as_json)


def _finished(done: Any, as_json: bool) -> None:
    from rayfed.storage import object_store

    stored = object_store.of(done.path)
    where = {"path": str(done.path), **({"stored": stored.uri} if stored else {})}
    if as_json:
        typer.echo(json.dumps({**where, "status": done.status, "summary": done.summary}, indent=1))
        return
    from rayfed.launch.progress import print_result, print_sweep

    (print_sweep if done.summary.get("kind") == "sweep" else print_result)(done.path, done.summary)
    if stored:
        typer.echo(f"stored: {stored.uri}")


def _first_line(cls: type) -> str:
    return (sys.modules[cls.__module__].__doc__ or cls.__doc__ or "").strip().splitlines()[0]


def _yaml(d: Any) -> str:
    import yaml

    return yaml.safe_dump(d, sort_keys=False)


def main() -> None:
    """Entry point: plain sentences for what a user can act on, and the exit codes of the README."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except RayfedError as e:
        typer.echo(f"rayfed: {e}" if "\n" not in str(e) else f"rayfed:\n{e}", err=True)
        sys.exit(e.exit_code)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as e:
        if not hasattr(e, "format_message"):  # anything but a wrong command line
            raise
        typer.echo(f"rayfed: {e.format_message()}\nSee: rayfed --help", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
