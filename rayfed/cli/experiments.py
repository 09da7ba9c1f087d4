"""Commands that compute: run, resume, sweep and claims."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayfed.cli.options import AcceptChanges, Address, ConfigName, Json, Local, ScaleUp, Sets
from rayfed.errors import ConfigError

if TYPE_CHECKING:
    from rayfed.launch.live import Progress


def run(
    config: ConfigName,
    sets: Sets = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder of run folders (overrides storage.path).")] = None,
    address: Address = None,
    scale_up: ScaleUp = 0.0,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Run an experiment or a study to its end."""
    from rayfed.launch.preflight import load_request

    request = load_request(config, sets or ())
    with _progress(as_json) as progress:
        if local:
            from rayfed.launch.start import run_local

            done = run_local(request, out=out, watch=progress.update, own_process=True)
        else:
            from actors.driver import run_on_ray

            done = run_on_ray(request, out=out, address=address, scale_up=scale_up, watch=progress.update)
    _print_finished(done, as_json)


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="A system whose paper's settings are known; without: which.")
    ] = None,
    sets: Sets = None,
    plan: Annotated[
        bool, typer.Option("--plan", "--dry-run", help="Print what would be run and compared; run nothing.")
    ] = False,
    judge: Annotated[
        Path | None, typer.Option("--judge", metavar="STUDY", help="Compare a study that was run; run nothing.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder of run folders (overrides storage.path).")] = None,
    address: Address = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Run a system at its paper's scale, on your data and machines, and compare each number with the paper's."""
    from rayfed.launch import reproduce as papers

    if name is None:
        typer.echo(json.dumps(papers.names()) if as_json else "\n".join(papers.names()))
        return
    if plan and judge:
        raise ConfigError("reproduce: --plan and --judge are two things; give one of them")
    if plan:
        typer.echo(json.dumps(papers.read(name).model_dump(), indent=1) if as_json else papers.plan(name).rstrip())
        return
    folder = judge
    if folder is None:
        request = papers.request(name, sets or ())
        with _progress(as_json) as progress:
            if local:
                from rayfed.launch.start import run_local

                done = run_local(request, out=out, watch=progress.update, own_process=True)
            else:
                from actors.driver import run_on_ray

                done = run_on_ray(request, out=out, address=address, watch=progress.update)
        folder = done.path
    found = papers.compare(name, folder)
    typer.echo(json.dumps({"path": str(folder), "cells": found}, indent=1) if as_json else papers.table(found).rstrip())


def resume(
    run: Annotated[str, typer.Argument(help="Folder of a run, a study or a sweep, or its URI in object storage.")],
    sets: Sets = None,
    accept_changes: AcceptChanges = False,
    address: Address = None,
    scale_up: ScaleUp = 0.0,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Continue a run from its last snapshot; --set rounds=N makes it longer."""
    if _is_sweep(run):
        from tune_spaces.sweep.start import resume_sweep

        options = (("--set", sets), ("--scale-up", scale_up), ("--local", local))
        if given := [o for o, v in options if v]:
            raise ConfigError(f"resume: a sweep continues as it was started; leave out {', '.join(given)}")
        with _progress(as_json) as progress:
            swept = resume_sweep(run, accept_changes=accept_changes, address=address, watch=progress.update)
        _print_finished(swept, as_json)
        return
    with _progress(as_json) as progress:
        if local:
            from rayfed.launch.start import resume_local

            done = resume_local(
                run, sets=sets or (), accept_changes=accept_changes, watch=progress.update, own_process=True
            )
        else:
            from actors.driver import resume_on_ray

            where: dict[str, Any] = {"address": address, "scale_up": scale_up}
            done = resume_on_ray(run, sets=sets or (), accept_changes=accept_changes, watch=progress.update, **where)
    _print_finished(done, as_json)


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
    accept_changes: AcceptChanges = False,
    as_json: Json = False,
) -> None:
    """Search a space: which clusters, ranks, heterogeneity ... are best (docs/sweeps.md)."""
    from tune_spaces.sweep.request import SweepOptions, check_request, parse_seeds
    from tune_spaces.sweep.start import command_line, resume_sweep, start_sweep

    given = [o for o, v in (("SPACE", spaces), ("CONFIG", config), ("--set", sets), ("--out", out)) if v is not None]
    if resume is not None and given:
        raise ConfigError(f"sweep --resume: a sweep continues as it was started; leave out {', '.join(given)}")
    if resume is None and accept_changes:
        raise ConfigError("sweep: --accept-changes goes with --resume DIR")
    if resume is None and (spaces is None or config is None):
        from tune_spaces.sweep.spaces import ready_spaces

        known = "\n".join(f"  {n:14} {t}" for n, t in ready_spaces().items())
        raise ConfigError(f"sweep: rayfed sweep SPACE[,SPACE...] CONFIG, or --resume DIR; ready spaces:\n{known}")
    with _progress(as_json) as progress:
        where: dict[str, Any] = {"address": address, "watch": progress.update}
        if resume is not None:
            done = resume_sweep(resume, accept_changes=accept_changes, **where)
        else:
            options = SweepOptions(search, samples, scheduler, parse_seeds(seeds), metric, concurrent, reuse)
            request = check_request(str(spaces).split(","), str(config), options, sets or (), arm)
            done = start_sweep(request, out=out, command=command_line(), **where)
    _print_finished(done, as_json)


def claims(
    names: Annotated[list[str] | None, typer.Argument(help="Files of benchmarks/claims; default: all.")] = None,
    shelf: Annotated[Path | None, typer.Option("--shelf", help="Folder of the data shelf (RAYFED_SHELF).")] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of their study folders; what is done there is kept.")
    ] = Path("runs/claims"),
    reproduce: Annotated[
        bool,
        typer.Option("--reproduce", help="Keep the shipped verdicts, and add whether this machine finds the same."),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Run nothing: judge again from the published values; exit 1 where they differ."),
    ] = False,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm",
            help="Verdicts of unchanged files under changed code: run one seed of every arm; exit 1 where a published value differs.",
        ),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Processes at a time, one thread each, without Ray.")
    ] = None,
    address: Address = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Tune, run and judge the claims of a checkout; rewrites benchmarks/CLAIMS.md and the shipped verdicts."""
    from rayfed.launch import claims as launched
    from rayfed.launch.claim_confirm import confirm_claims
    from rayfed.launch.claim_runs import in_processes, one_by_one
    from rayfed.launch.claims_page import evidence

    if reproduce + check + confirm > 1:
        raise ConfigError("claims: --reproduce, --check and --confirm are three things; give one of them")
    if check:
        _check_claims(names or ())
        return
    log = partial(typer.echo, err=True)
    if not confirm:
        _print_plan(launched.plan(names or (), shelf), jobs or 1, log)
    with in_processes(jobs) if jobs else nullcontext(one_by_one(_study_runner(local, address, as_json))) as run_studies:
        if confirm:
            _print_confirmed(confirm_claims(names or (), run_studies, out=out, shelf=shelf, log=log), as_json)
            return
        judged = launched.judge_claims(names or (), run_studies, out=out, shelf=shelf, reproduce=reproduce, log=log)
    if as_json:
        typer.echo(json.dumps(judged, indent=1))
        return
    for name, entry in judged.items():
        for r in entry["results"]:
            typer.echo(f"{r['verdict']:20} {name}: {r['about']}\n{'':20} {evidence(r)}")


def _study_runner(local: bool, address: str | None, quiet: bool) -> Any:
    """Return what runs a study of claims, or continues the one that is there: in this process, or on Ray."""
    from rayfed.launch.claim_runs import find_study, run_local_study

    def run_study(study: Any, folder: Path) -> tuple[Path, dict[str, Any]]:
        with _progress(quiet) as progress:
            if local:
                return run_local_study(study, folder, progress.update)
            from actors.driver import resume_on_ray, run_on_ray

            where: dict[str, Any] = {"address": address, "watch": progress.update}
            before = find_study(study, folder)
            done = resume_on_ray(before, **where) if before else run_on_ray(study, out=folder, **where)
        return done.path, done.summary

    return run_study


def _print_plan(plan: list[tuple[str, int, float | None]], jobs: int, log: Any) -> None:
    """Print how many runs each claim takes, and for how long."""
    for name, runs, minutes in plan:
        log(f"{name:24} {runs:5} runs  {'never judged' if minutes is None else f'about {minutes / jobs:.0f} minutes'}")
    total = sum(minutes or 0.0 for _, _, minutes in plan)
    log(
        f"{'together':24} {sum(runs for _, runs, _ in plan):5} runs  about {total / jobs:.0f} minutes, {jobs} at a time"
    )


def _print_confirmed(found: Mapping[str, Sequence[str]], as_json: bool) -> None:
    """Print what of published verdicts is not the same under today's code; exit 1 where anything is not."""
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        for name, differing in found.items():
            typer.echo(
                "\n".join(
                    [f"{'differs' if differing else 'confirmed':20} {name}", *(f"{'':20} {d}" for d in differing)]
                )
            )
    if any(found.values()):
        raise typer.Exit(1)


def _check_claims(names: Sequence[str]) -> None:
    """Print what published verdicts do not follow from their values; exit 1 where there is any."""
    from rayfed.launch.claims import check

    wrong, without = check(names)
    for name in without:
        typer.echo(f"{name}: no values are published for it; nothing to check")
    for problem in wrong:
        typer.echo(problem)
    typer.echo(
        f"{'some' if wrong else 'all other'} verdicts {'do not ' if wrong else ''}follow from their published values"
    )
    if wrong:
        raise typer.Exit(1)


def _is_sweep(where: str) -> bool:
    """Return whether a folder, or a URI in object storage, holds a sweep."""
    from rayfed.storage import object_store

    if not object_store.is_uri(where) or object_store.uri_problem(where):
        return (Path(where) / "sweep.yaml").is_file()
    last = object_store.newest_manifest(*object_store.open_filesystem(where))
    return bool(last) and "sweep.yaml" in (last or {})["files"]


def _progress(as_json: bool) -> Progress:
    from rayfed.launch.live import Progress

    return Progress(quiet=as_json)


def _print_finished(done: Any, as_json: bool) -> None:
    """Print the result of a run, a study or a sweep: a table, or JSON."""
    from rayfed.storage import object_store

    for sentence in done.given_up:
        typer.echo(f"rayfed: {sentence}", err=True)
    stored = object_store.mirror_of(done.path)
    where = {"path": str(done.path), **({"stored": stored.uri} if stored else {})}
    if as_json:
        typer.echo(json.dumps({**where, "status": done.status, "summary": done.summary}, indent=1))
        return
    from rayfed.launch.progress import print_result, print_sweep

    (print_sweep if done.summary.get("kind") == "sweep" else print_result)(done.path, done.summary)
    if stored:
        typer.echo(f"stored: {stored.uri}")
