"""The subject of a report: the runs of a folder or of several, by arm and seed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rayfed.errors import ConfigError, DamagedFile, nearest
from rayfed.metrics import (
    SCOPES,
    Measure,
    declare,
    final_value,
    first_rounds,
    lower_is_better,
    mean_of_last,
    measured,
    rounds_to,
    trailing_means,
)
from rayfed.report.settings import compared
from rayfed.storage import round_log
from rayfed.storage.listing import status
from rayfed.storage.provenance import read_settings, settings_file
from rayfed.storage.saved_config import method_name, section
from rayfed.storage.study_folder import study_base, study_runs
from rayfed.storage.text_files import read_json

if TYPE_CHECKING:
    import numpy as np

MAX_COLUMNS, MAX_CELLS = 60, 400_000  # of the picture of cluster membership
TO_REPEAT = "to repeat: "  # begins the note with the `--set` options that repeat a run
NO_QUALITY = ("bytes", "ray", "time", "clients", "actors")  # families of metrics that measure cost


class Membership(NamedTuple):
    """Each client's cluster over rounds: rounds (T,); group (n,) planted group or -1; cluster (n, T), -1 for none;
    thinned: whether evaluated rounds were left out. Clients by group, then by their last cluster."""

    rounds: list[int]
    group: np.ndarray
    cluster: np.ndarray
    thinned: bool


@dataclass(frozen=True)
class RunRecord:
    """One run as read from its folder."""

    path: Path
    arm: str
    seed: int
    config: Mapping[str, Any]
    summary: Mapping[str, Any]  # {} while it has not ended
    status: str
    rows: Sequence[Mapping[str, Any]]

    def series(self, metric: str) -> list[tuple[int, float]]:
        """Return (round, value) of the rounds in which the metric was measured; of "rounds to X of METRIC" and "mean of
        the last N of METRIC", of METRIC's rounds."""
        if wanted := rounds_to(metric):
            target, of = wanted
            return first_rounds(self.series(of), target, lower_is_better(of))
        if averaged := mean_of_last(metric):
            rounds, of = averaged
            return trailing_means(self.series(of), rounds)
        return [(r["round"], float(r[metric])) for r in self.rows if r.get(metric) is not None]

    def final(self, metric: str) -> float | None:
        """Return the final value; see `rayfed.metrics.final_value`."""
        if measured(metric) != metric:
            return self.series(metric)[-1][1] if self.series(metric) else None
        found = final_value(self.rows, metric)
        return None if found is None else float(found)

    @property
    def collapsed(self) -> int | None:
        """The round in which the run fell to chance (`rayfed.engine.collapse`); None where it did not, or has not ended."""
        found = self.summary.get("collapsed") or {}
        return found.get("round")

    @property
    def measures(self) -> dict[str, Measure]:
        """What the run measured that is not known by its name alone, by name."""
        return {m[0]: Measure(*m) for m in self.summary.get("measures") or []}

    def cumulative(self, *metrics: str) -> dict[int, float]:
        """Return round -> the sum of these metrics from the first round to this one."""
        out, total = {}, 0.0
        for row in self.rows:
            total += sum(float(row.get(m) or 0.0) for m in metrics)
            out[row["round"]] = total
        return out

    @cached_property
    def clients(self) -> list[dict[str, Any]]:
        """Client rows of the newest evaluated round."""
        return round_log.read_clients(self.path)

    @property
    def split_key(self) -> str:
        """Everything that decides the data split, as text: equal keys are equal splits."""
        task, federation = section(self.config, "task"), dict(section(self.config, "federation"))
        for other in ("per_round", "participation"):
            federation.pop(other, None)
        return json.dumps([self.seed, task.get("data"), federation], sort_keys=True, default=str)

    @property
    def experiment_key(self) -> str:
        """The settings without the seed, as text: equal keys are runs of one experiment."""
        return json.dumps(compared(self.config), sort_keys=True, default=str)

    @property
    def notes(self) -> list[str]:
        """Notes of the summary, without the one that says how to repeat the run."""
        notes = [str(n) for n in self.summary.get("notes") or []]
        return [n for n in notes if not n.startswith(TO_REPEAT)]

    @property
    def repeat_options(self) -> str:
        """The `--set` options that the run recorded for its repetition."""
        notes = [str(n) for n in self.summary.get("notes") or []]
        return next((n.removeprefix(TO_REPEAT) for n in notes if n.startswith(TO_REPEAT)), "")

    @cached_property
    def membership(self) -> Membership | None:
        """Clusters of the clients over the evaluated rounds; None without clusters."""
        import numpy as np

        found = [r["round"] for r in self.rows if r.get("clusters/count") is not None]
        if not found:
            return None
        most = min(MAX_COLUMNS, max(2, MAX_CELLS // max(1, len(self.clients))), len(found))
        shown = sorted({found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)})
        columns = [_taking_part(self.path, n) for n in shown]
        known = {c: row for column in columns for c, row in column.items()}
        last = {c: _number(row.get("cluster")) for c, row in known.items()}
        order = sorted(known, key=lambda c: (_number(known[c].get("group")), last[c], c))
        cluster = np.array([[_number(column.get(c, {}).get("cluster")) for column in columns] for c in order], int)
        if not cluster.size or (cluster < 0).all():
            return None
        group = np.array([_number(known[c].get("group")) for c in order], int)
        return Membership(shown, group, cluster, len(shown) < len(found))


def _taking_part(path: Path, round: int) -> dict[int, dict[str, Any]]:
    """Return client -> its row in an evaluated round, without held-out clients."""
    return {r["client"]: r for r in round_log.read_clients(path, round) if not r.get("unseen")}


def _number(value: Any) -> int:
    return -1 if value is None else int(value)


@dataclass(frozen=True)
class Subject:
    """What a page is about: a run (one arm, one seed), a study, or several of them next to each other."""

    kind: Literal["run", "study", "comparison"]
    sources: Sequence[Path]
    name: str
    study: Mapping[str, Any] | None
    arms: Mapping[str, Sequence[RunRecord]]  # in order; runs that have begun
    planned_runs: int

    @property
    def path(self) -> Path:
        """The first folder, for a run or a study the only one."""
        return self.sources[0]

    @property
    def runs(self) -> list[RunRecord]:
        """The runs of all arms."""
        return [run for found in self.arms.values() for run in found]

    @property
    def done(self) -> dict[str, list[RunRecord]]:
        """arm -> its runs that are done: only these have final values."""
        return {arm: [r for r in found if r.summary.get("status") == "done"] for arm, found in self.arms.items()}

    @cached_property
    def metrics(self) -> list[str]:
        """Names of all measured metrics, those with a scope first, in the order of the scopes."""
        names = dict.fromkeys(k for run in self.runs for row in run.rows for k in row if k != "round")
        measured = [n for n in names if any(run.series(n) for run in self.runs)]
        order = list(SCOPES)

        def rank(metric: str) -> tuple[int, int, int]:
            name, _, where = metric.partition("/")
            scope = where.removesuffix("_ex")
            if scope not in SCOPES:
                return (2, 0, 0)
            return ({"accuracy": 0, "loss": 1}.get(name, 1), where != scope, order.index(scope))

        return sorted(measured, key=rank)

    def scopes(self) -> dict[str, list[str]]:
        """Return NAME -> its measured scopes, without `_ex`."""
        out: dict[str, list[str]] = {}
        for metric in self.metrics:
            name, _, where = metric.partition("/")
            if where in SCOPES:
                out.setdefault(name, []).append(where)
        return out

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """What the runs measured that is not known by its name alone, by name."""
        return {n: m for run in self.runs for n, m in run.measures.items()}

    def quality_metrics(self) -> list[str]:
        """Return the metrics that measure quality, not cost: with a scope, of clusters, privacy, and the method's own."""
        return [m for m in self.metrics if not m.endswith("_ex") and m.partition("/")[0] not in NO_QUALITY]


def load(path: Path) -> Subject:
    """Read a run or a study folder. ConfigError if it is neither."""
    kind = settings_file(path)
    if kind == "study.yaml":
        return load_study(path)
    if kind == "config.yaml":
        run = read_run(path)
        return Subject("run", [path], path.name, None, {run.arm: [run]}, 1)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() and not path.is_dir() else []
    raise ConfigError(
        f"{path}: neither a run (config.yaml) nor a study (study.yaml){nearest(path.name, siblings)}; "
        "`rayfed runs` lists what is there"
    )


def read_run(path: Path, arm: str | None = None, seed: int | None = None) -> RunRecord:
    """Read config, rows, summary and status of a run folder; arm and seed default to the config's method and seed."""
    config, summary, rows = read_settings(path), read_json(path / "summary.json"), round_log.read(path)
    if (ended := summary.get("rounds", 0)) > len(rows):
        raise DamagedFile(path, path / "metrics.parquet", f"{len(rows)} rows found, the run has {ended} rounds")
    record = RunRecord(
        path,
        arm or method_name(config),
        int(config.get("seed", 0)) if seed is None else seed,
        config,
        summary,
        status(path),
        list(rows.values()),
    )
    with contextlib.suppress(ConfigError):  # of runs that disagree the first one counts
        declare(record.measures.values())
    return record


def load_study(path: Path) -> Subject:
    """Read a study folder with the runs that have begun."""
    study = read_settings(path, "study.yaml")
    planned = list(study_runs(path, study))
    arms: dict[str, list[RunRecord]] = {arm: [] for arm, _, _ in planned}
    for arm, seed, folder in planned:
        if settings_file(folder):
            arms[arm].append(read_run(folder, arm, seed))
    return Subject("study", [path], str(study_base(study).get("name") or path.name), study, arms, len(planned))


def load_comparison(paths: Sequence[Path]) -> Subject:
    """Read several runs and studies as arms of one subject. Runs that differ only in their seed are one arm."""
    parts: list[tuple[Subject, list[RunRecord]]] = []
    experiments: dict[str, list[list[RunRecord]]] = {}  # of single runs: experiment -> its arms
    planned = 0
    for path in paths:
        subject = load(path)
        planned += subject.planned_runs
        for runs in subject.arms.values():
            known = experiments.setdefault(runs[0].experiment_key, []) if subject.kind == "run" else []
            same = next((arm for arm in known if runs[0].seed not in [r.seed for r in arm]), None)
            if same is None:
                parts.append((subject, list(runs)))
                known.append(parts[-1][1])
            else:
                same += runs
    parts = [(subject, sorted(runs, key=lambda r: r.seed)) for subject, runs in parts if runs]
    names = _unique([_names(subject, runs) for subject, runs in parts])
    arms = {name: runs for name, (_, runs) in zip(names, parts, strict=True)}
    return Subject("comparison", list(paths), " · ".join(names), None, arms, planned)


def _names(subject: Subject, runs: Sequence[RunRecord]) -> list[str]:
    """Return names for an arm of a comparison, from the most readable to the most specific."""
    arm, first = runs[0].arm, runs[0]
    if subject.kind == "study":
        return [arm, f"{subject.name}/{arm}", f"{subject.path.name}/{arm}"]
    seeds = ",".join(str(r.seed) for r in runs)
    return [arm, str(first.config.get("name") or arm), f"{arm} seed {seeds}", f"{arm} {short_id(first.path)}"]


def _unique(names: Sequence[Sequence[str]]) -> list[str]:
    """Choose one name each, all from the same level where that makes them unique; else number them."""
    chosen: list[str] = []
    for level in range(4):
        chosen = [n[min(level, len(n) - 1)] for n in names]
        if len(set(chosen)) == len(chosen):
            return chosen
    return [n if chosen.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(chosen)]


def short_id(path: Path) -> str:
    """Return the last part of a folder name that `new_id` made, `ARM-seed-S` in a study, else the name."""
    path = path.resolve()
    if path.name.startswith("seed-"):
        return f"{path.parent.name}-{path.name}"
    parts = path.name.rsplit("-", 3)
    generated = len(parts) == 4 and len(parts[1]) == 8 and parts[1].isdigit() and parts[2].isdigit()
    return parts[3] if generated else path.name
