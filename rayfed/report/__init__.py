"""`report.html` and `plots/*.png` of a run or a study: curves, tables, settings, and the command that repeats it."""

from __future__ import annotations

from pathlib import Path

from rayfed.errors import ConfigError
from rayfed.report.study import study_summary

__all__ = ["study_summary", "write_report"]


def write_report(path: Path | str) -> Path:
    """Write `report.html` (one self-contained file) and `plots/*.png` into a run or study folder; returns the page.

    Works on unfinished ones too, with what is there. ConfigError if the folder is neither a run nor a study.
    """
    from rayfed.files import durable_write
    from rayfed.report.data import load_run, load_study
    from rayfed.report.page import render

    path = Path(path)
    if (path / "study.yaml").is_file():
        subject = load_study(path)
    elif (path / "config.yaml").is_file():
        subject = load_run(path)
    else:
        raise ConfigError(
            f"{path}: neither a run (config.yaml) nor a study (study.yaml); `rayfed runs` lists what is there"
        )
    html, pictures = render(subject)
    plots = path / "plots"
    plots.mkdir(exist_ok=True)
    for name, png in pictures.items():
        durable_write(plots / f"{name}.png", png, sync=False)
    durable_write(path / "report.html", html.encode(), sync=False)
    return path / "report.html"
