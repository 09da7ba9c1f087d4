"""Commands that show what runs left: runs, report, monitor, export and audit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rayfed.cli.options import Json
from rayfed.errors import ConfigError


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder of run folders.")] = Path("runs"), as_json: Json = False
) -> None:
    """List runs, studies and sweeps, and the status of each."""
    from rayfed.storage.listing import list_runs

    if not folder.is_dir():
        raise ConfigError(f"runs: {folder} is not a folder")
    found = list_runs(folder)
    if as_json:
        typer.echo(json.dumps(found, indent=1, default=str))
        return
    for r in found:
        more = f"{r['trials']['complete']}/{r['trials']['planned']} trials  " if r["kind"] == "sweep" else ""
        more += f"best {r['metric']} {r['best']:.4f}  " if r.get("best") is not None else ""
        if fell := r.get("collapsed"):
            more += "fell apart  " if r["kind"] == "run" else f"{fell} run{'s' * (fell > 1)} fell apart  "
        typer.echo(
            f"{r['name']:40} {r['kind']:6} {r['method'] or '':18} {r['round']}/{r['rounds']}  {more}{r['status']}"
        )
    if not found:
        typer.echo(f"no runs in {folder}")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run or study folders; several are compared on one page.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File of the page that compares; default: compare-IDS.html here.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Write every picture as a file of its own there; no page."),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="Of the figures: pdf | svg | png.")] = "pdf",
    table: Annotated[
        str | None, typer.Option("--table", metavar="FORM", help="Print the final values as latex | md | csv; no page.")
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Print a report card: what each arm trains, sends and reaches, its worst clients too; no page.",
        ),
    ] = False,
    bootstrap: Annotated[
        bool,
        typer.Option(
            "--bootstrap",
            help="Print each client's AUROC under each arm against the first one's, by paired bootstrap; no page.",
        ),
    ] = False,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME/SCOPE",
            help="Of the table, or a NAME of the card; may be repeated; default: all scores.",
        ),
    ] = None,
) -> None:
    """Write report.html again, or a page that compares several, and print its path; or a report card, figures, a table for a paper."""
    from rayfed.report import write_comparison, write_figures, write_report
    from rayfed.storage.provenance import settings_file

    alone = figures is None and table is None and not card and not bootstrap
    kinds = ("config.yaml", "study.yaml", *(["sweep.yaml"] if len(runs) == 1 and alone else []))
    missing = [str(r) for r in runs if settings_file(r) not in kinds]
    if missing:
        raise ConfigError([f"report: {m} is not a run or a study folder" for m in missing])
    if out is not None and (len(runs) == 1 or not alone):
        other = f"the report of {runs[0]} goes into it" if alone else "--figures DIR takes figures"
        raise ConfigError(f"report: --out {out} is for a page that compares; {other}")
    if metrics and table is None and not card:
        raise ConfigError("report: --metric chooses columns of --table latex | md | csv, or what --card shows")
    if card and (table is not None or figures is not None):
        raise ConfigError("report: --card found beside --table or --figures; allowed: one of them")
    if alone:
        typer.echo(str(write_report(runs[0]) if len(runs) == 1 else write_comparison(runs, out)))
        return
    if bootstrap:
        if len(runs) > 1 or card or table is not None or figures is not None:
            raise ConfigError("report: --bootstrap found beside others; allowed: one study, and it alone")
        from rayfed.launch import resampled

        typer.echo(resampled.markdown(runs[0]), nl=False)
        return
    if card:
        from rayfed.report.card import markdown
        from rayfed.report.subject import load, load_comparison

        typer.echo(markdown(load(runs[0]) if len(runs) == 1 else load_comparison(runs), metrics or ()), nl=False)
        return
    text = table and result_text(runs, table, metrics or ())
    if figures is not None:
        for file in write_figures(runs, figures, form):
            typer.echo(str(file), err=text is not None)
    if text:
        typer.echo(text, nl=False)


def result_text(runs: list[Path], form: str, metrics: Sequence[str]) -> str:
    """Return the final values of runs and studies as latex | md | csv."""
    from rayfed.report.subject import load, load_comparison
    from rayfed.report.tables import result_table

    return result_table(load(runs[0]) if len(runs) == 1 else load_comparison(runs), metrics).text(form)


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
    from rayfed.monitor import Server, start_commands, write_files

    if not serve and out is None:
        raise ConfigError(
            "monitor: nothing to do; --serve shows a live page, --out DIR writes Prometheus and Grafana files"
        )
    if serve and not folder.is_dir():
        raise ConfigError(f"monitor: {folder} is not a folder")
    page = Server(folder, port) if serve else None
    if out is not None:
        typer.echo(start_commands(write_files(out, port)))
    if page is not None:
        typer.echo(f"{page.url} shows {folder}; Ctrl-C ends it")
        page.serve_forever()


def export(
    run: Annotated[Path, typer.Argument(help="A run folder; of a study: STUDY/ARM/seed-0.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder.")],
    model: Annotated[str, typer.Option("--model", help="model, or expert-0 ...")] = "model",
    best: Annotated[bool, typer.Option("--best", help="Of the best round (storage.best).")] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="An adapter goes into its base's weights: a whole model.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also model.onnx.")] = False,
) -> None:
    """Write a run's model for use without rayfed: weights, tokenizer, names of classes, model card."""
    from rayfed.launch.export import export as write

    for file in sorted(p for p in write(run, out, name=model, best=best, merge=merge, onnx=onnx).iterdir()):
        typer.echo(str(file))


def audit(
    run: Annotated[Path, typer.Argument(help="A run folder whose config has canaries; of a study: STUDY/ARM/seed-0.")],
    guesses: Annotated[
        int | None, typer.Option("--guesses", help="Canaries that are guessed, the clearest; default: all.")
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the lower bound.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Say how much a run with canaries shows of who took part: a lower bound of epsilon, beside the one it reports."""
    from rayfed.errors import RunFailed
    from rayfed.launch.audit import audit as found_by

    found = found_by(run, guesses, confidence)
    typer.echo(json.dumps(found.to_dict(), indent=1) if as_json else found.text())
    if found.broken:
        raise RunFailed(f"audit: epsilon {found.least:.3g} was shown, {found.claimed:.3g} is claimed")
