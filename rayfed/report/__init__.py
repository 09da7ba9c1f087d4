"""`report.html` and `plots/*.png` of a run or a study, and one page that compares several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rayfed.errors import ConfigError, RunFailed, nearest
from rayfed.lazy import make_callable
from rayfed.report.study import study_summary

__all__ = ["study_summary", "write_comparison", "write_figures", "write_report"]


def write_report(path: Path | str) -> Path:
    """Write `report.html` (one self-contained file) and `plots/*.png` into a run or study folder, `sweep.html` into a sweep's.

    Returns the page. Works on unfinished ones too, with what is there. ConfigError if the folder is none of them; RunFailed if the
    page cannot be written, or what it shows is damaged.
    """
    from rayfed.report.page import render
    from rayfed.report.subject import load
    from rayfed.storage.atomic import durable_write, os_error_text
    from rayfed.storage.text_files import read_json

    path = Path(path)
    if (path / "sweep.yaml").is_file():
        from rayfed.report.sweep import write_sweep

        summary = read_json(path / "summary.json")
        write_sweep(path, ended=summary.get("status") == "done", failed=summary.get("failed", 0))
        return path / "sweep.html"
    html, pictures = render(load(path))
    plots = path / "plots"
    try:
        plots.mkdir(exist_ok=True)
        for picture in pictures:
            durable_write(plots / f"{picture.name}.png", picture.png(), sync=False)
        durable_write(path / "report.html", html.encode(), sync=False)
    except OSError as error:
        raise RunFailed(f"report: cannot write {error.filename or path}: {os_error_text(error, path)}") from error
    return path / "report.html"


def write_comparison(paths: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Write one self-contained page that compares runs and studies; returns it, by default `compare-IDS.html` here.

    Runs that differ only in their seed are one arm, and a study's arms stay arms; the first arm is the reference.
    ConfigError if a folder is neither a run nor a study, or the page cannot be written.
    """
    from rayfed.report.page import render
    from rayfed.report.subject import load_comparison, short_id
    from rayfed.storage.atomic import durable_write, os_error_text

    sources = [Path(p) for p in paths]
    ids = [short_id(p) for p in sources]
    ids = ids if len(ids) <= 5 else [*ids[:4], f"and-{len(ids) - 4}-more"]
    page = Path(out) if out else Path(f"compare-{'-'.join(ids)}.html")
    if page.is_dir():
        raise ConfigError(f"report: {page} is a folder; name the file of the page that compares")
    html, _ = render(load_comparison(sources))
    try:
        durable_write(page, html.encode(), sync=False)
    except OSError as error:
        raise ConfigError(f"report: cannot write {page}: {os_error_text(error, page.parent)}") from error
    return page


def write_figures(paths: Sequence[Path | str], folder: Path | str, form: str = "pdf") -> list[Path]:
    """Write every picture of the report of a run or a study, or of the page that compares several, into a file of its own.

    folder: is made where it is missing; form: pdf | svg | png. Returns the files. ConfigError for another form, and where a file cannot
    be written.
    """
    from rayfed.report.page import pictures
    from rayfed.report.picture import FORMATS
    from rayfed.report.subject import load, load_comparison
    from rayfed.storage.atomic import os_error_text

    known, where = [f[1:] for f in FORMATS], Path(folder)
    if form not in known:
        raise ConfigError(f"--format: {form!r} found{nearest(form, known)}, allowed: {', '.join(known)}")
    sources = [Path(p) for p in paths]
    subject = load(sources[0]) if len(sources) == 1 else load_comparison(sources)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--figures: cannot make {where}: {os_error_text(error, where)}") from error
    return [picture.save(where / f"{picture.name}.{form}") for picture in pictures(subject)]


make_callable(__name__)  # `rayfed.report(run)` writes a report
