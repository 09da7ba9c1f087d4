"""Papers' own settings, for the user's data and GPUs: what would be run, and how what was run compares with the papers' numbers.

A file of `rayfed/config/paper` is a system at its paper's scale: a config, and the paper's cells, each one number for one arm and metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field

from rayfed.config import reading
from rayfed.config.schema import Section
from rayfed.errors import ConfigError, nearest
from rayfed.launch.preflight import load_request
from rayfed.report.statistics import compare_pairs
from rayfed.report.subject import load_study

if TYPE_CHECKING:
    from rayfed.config.schema import Config, Study

PAPERS = Path(__file__).parents[1] / "config" / "paper"


class Cell(Section):
    """One number of a paper's table."""

    arm: str = Field(description="Arm of the config that it is compared with.")
    metric: str = Field("accuracy/global", description="NAME/SCOPE.")
    at: int = Field(ge=1, description="The round in which it is measured.")
    paper: float = Field(description="The paper's number.")
    within: float = Field(0.01, gt=0, description="Distance up to which a mean over seeds is the same.")


class Paper(Section):
    """A system at its paper's scale."""

    source: str = Field(description="Where the cells stand.")
    requires: str = Field(description="Data, models and machines that are to be brought.")
    differs: str = Field(description="What is not the paper's, or could not be read.")
    config: dict[str, Any] = Field(description="A study, as a file of it would be.")
    cells: list[Cell] = Field(min_length=1, description="What is compared.")


def names() -> list[str]:
    """Return the systems that have a config at their paper's scale."""
    return sorted(p.stem for p in PAPERS.glob("*.yaml"))


def read(name: str) -> Paper:
    """Return a system at its paper's scale. ConfigError for an unknown name."""
    if name not in names():
        raise ConfigError(
            f"reproduce: {name!r} is unknown{nearest(name, names())}; papers' settings are known of: {', '.join(names())}"
        )
    return Paper.model_validate(reading.read_file(PAPERS / f"{name}.yaml"))


def request(name: str, sets: Sequence[str] = ()) -> Config | Study:
    """Return the study at a paper's scale with overrides, fit to be run. ConfigError lists all that is wrong, as for any config."""
    return load_request(read(name).config, sets)


def plan(name: str) -> str:
    """Return what would be run and compared, as text for a terminal; reads no data."""
    paper = read(name)
    arms, seeds = paper.config.get("arms") or {}, paper.config.get("seeds") or [0]
    runs = f"{len(arms)} arms, {len(seeds)} seeds, {paper.config['rounds']} rounds: {len(arms) * len(seeds)} runs."
    lines = [name, "", f"Source: {paper.source}", f"Needs: {paper.requires}", f"Differs: {paper.differs.strip()}", ""]
    lines += [f"{runs} Beside it, at desk scale: rayfed run {name}", ""]
    lines += [yaml.safe_dump(paper.config, sort_keys=False).rstrip(), "", "Compared:"]
    for c in paper.cells:
        lines.append(f"  {c.arm:20} {c.metric} at round {c.at}: paper {c.paper:g}, the same within {c.within:g}")
    return "\n".join(lines) + "\n"


def compare(name: str, folder: Path) -> list[dict[str, Any]]:
    """Return each cell of a paper with what a study's folder has of it: `values` by seed, `mean`, `interval` (95 %) and `verdict`.

    Verdicts: "same" and "above" or "below", where the mean over seeds is within the cell's distance or not, and the interval says the same;
    "undecided" where the interval does not; "one seed: ..." where there is none; "not run" without a value.
    """
    arms = load_study(folder).arms
    return [_judged(cell, [_value(run, cell) for run in arms.get(cell.arm, [])]) for cell in read(name).cells]


def _value(run: Any, cell: Cell) -> float | None:
    return dict(run.series(cell.metric)).get(cell.at)


def _judged(cell: Cell, found: Sequence[float | None]) -> dict[str, Any]:
    values = [v for v in found if v is not None]
    out: dict[str, Any] = {**cell.model_dump(), "values": values, "mean": None, "interval": None, "verdict": "not run"}
    if not values:
        return out
    apart = compare_pairs([v - cell.paper for v in values])
    if apart.mean is None:
        return {**out, "verdict": "undecided"}
    out["mean"] = cell.paper + apart.mean
    near = _side(apart.mean, cell.within)
    if apart.interval is None:
        return {**out, "verdict": f"one seed: {near}"}
    out["interval"] = [cell.paper + v for v in apart.interval]
    sides = {_side(v, cell.within) for v in apart.interval}
    return {**out, "verdict": near if sides == {near} else "undecided"}


def _side(gap: float, within: float) -> str:
    return "same" if abs(gap) <= within else "above" if gap > 0 else "below"


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Return compared cells as text for a terminal."""
    lines = []
    for c in cells:
        mean = "-" if c["mean"] is None else f"{c['mean']:.4f}"
        spread = "" if c["interval"] is None else f" (95 % {c['interval'][0]:.4f} to {c['interval'][1]:.4f})"
        what = f"{c['verdict']:20} {c['arm']:20} {c['metric']} at round {c['at']}"
        lines.append(f"{what}: {mean}{spread}, paper {c['paper']:g}, {len(c['values'])} seeds")
    return "\n".join(lines) + "\n"
