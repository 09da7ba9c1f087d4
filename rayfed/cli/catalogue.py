"""Commands that show what can be run: validate, ask, partition, cp, methods, systems and tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rayfed.cli.options import ConfigName, Json, Sets, complete_config, complete_method
from rayfed.errors import ConfigError, nearest


def validate(
    config: ConfigName,
    sets: Sets = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="Judge the settings alone; no data is read, no model built.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the resolved config, or everything that is wrong with it, the data and the models; notes on the data go to stderr."""
    import yaml

    from rayfed.launch.federations import Federations
    from rayfed.launch.preflight import load_request

    request = load_request(config, sets or ())
    for note in () if settings else Federations().notes(request):
        typer.echo(f"note: {note}", err=True)
    resolved = request.to_dict()
    typer.echo(json.dumps(resolved, indent=1) if as_json else yaml.safe_dump(resolved, sort_keys=False), nl=as_json)


def ask(
    text: Annotated[str, typer.Argument(help='In plain English: "fedprox, 20 rounds, dirichlet 0.1, save bandwidth".')],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A new file for the config; default: printed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a checked config of a request in plain English, and say what is open: exit code 2 until nothing is."""
    import yaml

    from rayfed.launch.ask import ask as understand

    if out is not None and out.exists():
        raise ConfigError(f"--out: {out} exists already")
    answer = understand(text)
    written = None if answer.config is None else yaml.safe_dump(answer.config, sort_keys=False)
    if as_json:
        about = {"understood": answer.understood, "questions": answer.questions, "config": answer.config}
        typer.echo(json.dumps(about, indent=1))
    elif written is not None and (out is None or answer.questions):
        typer.echo(written, nl=False)
    if answer.questions:
        raise ConfigError([f"open: {q}" for q in answer.questions])
    if out is not None and written is not None:
        out.write_text(written, encoding="utf-8")
        typer.echo(f"{out}: rayfed run {out}", err=as_json)


def partition(
    config: Annotated[
        str,
        typer.Argument(
            help="A file, or the name of a ready config; of a study, every split.", autocompletion=complete_config
        ),
    ],
    sets: Sets = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The split of this seed.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The picture: .png, .pdf or .svg; default NAME-partition.png here."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for scripts; a picture only where --out says so.")
    ] = False,
) -> None:
    """Describe the data split: who holds what, in numbers and as a picture."""
    from rayfed.config.schema import Config
    from rayfed.launch.preflight import load_request
    from rayfed.partition.describe import describe
    from rayfed.report import split_pictures

    request = load_request(config, sets or ())
    name = request.name if isinstance(request, Config) else request.base.name
    file = out or Path(f"{name}-partition.png")
    split_pictures.check(file)
    splits = describe(request, seed)
    if out is not None or not as_json:
        split_pictures.write(splits, file)
    if as_json:
        picture = None if out is None else str(file)
        typer.echo(json.dumps({"picture": picture, "splits": [d.to_dict() for d in splits]}, indent=1))
        return
    typer.echo("\n\n".join(d.text() for d in splits) + f"\n\npicture: {file}")


def cp(name: str, file: Path, force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False) -> None:
    """Copy a ready config to a file, to be edited."""
    from rayfed.config.load import READY, ready
    from rayfed.launch.config_schema import with_schema

    if name not in ready():
        raise ConfigError(f"cp: no ready config {name!r}{nearest(name, ready())}; ready: {', '.join(ready())}")
    if file.exists() and not force:
        raise ConfigError(f"cp: {file} exists; --force overwrites it")
    file.write_text(with_schema((READY / f"{name}.yaml").read_text(encoding="utf-8")), encoding="utf-8")
    typer.echo(f"{file}: edit it, then: rayfed run {file}")


def methods(
    name: Annotated[str | None, typer.Argument(autocompletion=complete_method)] = None,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="The papers of one, as BibTeX.")] = False,
    as_json: Json = False,
) -> None:
    """List the methods, or show one: paper, formula, settings, wire, visits, logged names, claims."""
    from rayfed import methods as registry
    from rayfed.launch import bibtex as papers
    from rayfed.launch import method_pages

    if bibtex:
        if name is None or as_json:
            raise ConfigError("methods: --bibtex goes with the name of a method, and without --json")
        typer.echo(papers.bibtex(name), nl=False)
    elif name is None:
        about = {n: method_pages.summary(registry.get(n)) for n in registry.names()}
        typer.echo(json.dumps(about, indent=1) if as_json else "\n".join(f"{n:18} {t}" for n, t in about.items()))
    elif as_json:
        typer.echo(json.dumps(method_pages.describe(name), indent=1, default=str))
    else:
        typer.echo(method_pages.page(name).rstrip())


def systems(name: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """List the systems, or show one: paper, formula, what stands in for what, what is ours, what is not claimed, claims."""
    from rayfed.launch import system_pages

    if as_json:
        known = system_pages.names() if name is None else [name]
        about = {n: system_pages.describe(n) for n in known}
        typer.echo(json.dumps(about if name is None else about[name], indent=1))
    elif name is not None:
        typer.echo(system_pages.page(name).rstrip())
    else:
        typer.echo(system_pages.listing().rstrip())


def tasks(name: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """List kinds of task, data sets, models and metrics."""
    from rayfed import data, models, set_metrics
    from rayfed import task as kinds

    every = {"kind": kinds.names(), "data": data.names(), "model": models.names(), "metric": set_metrics.names()}
    known = {k: dict(v) for k, v in every.items()}
    if name is not None:
        known = {k: {n: t for n, t in v.items() if n == name} for k, v in known.items()}
        if not any(known.values()):
            there = [n for v in every.values() for n, _ in v]
            raise ConfigError(f"tasks: {name!r} is unknown{nearest(name, there)}; known: {', '.join(there)}")
    if as_json:
        typer.echo(json.dumps(known, indent=1))
        return
    for kind, entries in known.items():
        for n, text in entries.items():
            typer.echo(f"{kind:6} {n:26} {text}")
