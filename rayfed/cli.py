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


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="A file, or the name of a ready config.")],
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of run folders (overrides storage.path).")] = None,
    address: Address = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Run an experiment or a study to its end."""
    from rayfed.config import load_config

    request = load_config(config, sets or ())
    with _progress(as_json) as progress:
        if local:
            from rayfed.launch import run_local

            done = run_local(request, out=out, watch=progress.update)
        else:
            from actors.driver import run as run_on_ray

            done = run_on_ray(request, out=out, address=address, watch=progress.update)
    _finished(done, as_json)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="A run folder or a study folder.")],
    sets: Sets = None,
    address: Address = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Continue a run where its last snapshot left it; --set rounds=N makes it longer."""
    with _progress(as_json) as progress:
        if local:
            from rayfed.launch import resume_local

            done = resume_local(run, sets=sets or (), watch=progress.update)
        else:
            from actors.driver import resume as resume_on_ray

            done = resume_on_ray(run, sets=sets or (), address=address, watch=progress.update)
    _finished(done, as_json)


@app.command()
def validate(config: str, sets: Sets = None, as_json: Json = False) -> None:
    """Print the resolved config, or everything that is wrong with it."""
    from rayfed.config import load_config

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
    from rayfed.config import Config, load_config
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
    from rayfed.configfile import READY, ready

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
    from rayfed.claims import numbers, of_method

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
    """List runs and studies, and how each stands."""
    from rayfed.runs import runs as find

    if not folder.is_dir():
        raise ConfigError(f"runs: {folder} is not a folder")
    found = find(folder)
    if as_json:
        typer.echo(json.dumps(found, indent=1, default=str))
        return
    for r in found:
        typer.echo(f"{r['name']:40} {r['kind']:6} {r['method'] or '':18} {r['round']}/{r['rounds']}  {r['status']}")
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

    missing = [str(r) for r in runs if not ((r / "config.yaml").exists() or (r / "study.yaml").exists())]
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
    from rayfed import claims as table

    def runs(study: Any, where: Path) -> tuple[Path, dict[str, Any]]:
        before = table.found(study, where)
        with _progress(as_json) as progress:
            how: dict[str, Any] = {"watch": progress.update} | ({} if local else {"address": address})
            if local:
                from rayfed.launch import resume_local as again
                from rayfed.launch import run_local as start
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


def _progress(as_json: bool) -> Any:
    from rayfed.progress import Progress

    return Progress(quiet=as_json)


def _finished(done: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"path": str(done.path), "status": done.status, "summary": done.summary}, indent=1))
        return
    from rayfed.progress import print_result

    print_result(done.path, done.summary)


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
