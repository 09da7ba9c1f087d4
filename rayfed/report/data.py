"""What a report is made from: the runs of a folder or of several, by arm and seed, and who holds what in them."""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rayfed.errors import ConfigError, RayfedError, nearest
from rayfed.metrics import SCOPES
from rayfed.storage import round_log
from rayfed.storage.atomic import read_json, read_yaml
from rayfed.storage.listing import method_name, status
from rayfed.storage.study_folder import study_base, study_runs

if TYPE_CHECKING:
    import numpy as np

MOST_COLUMNS, MOST_CELLS = 60, 400_000  # of the picture of cluster membership
QUICK_BYTES, QUICK_EXAMPLES = 50_000_000, 200_000  # data that may be split again for a picture
APART = ("seed", "name", "storage", "resources", "track", "failures")  # settings that do not make another experiment


class Membership(NamedTuple):
    """Who was in which cluster: rounds (T,); group (n,) planted group or -1; cluster (n, T), -1 for none; thinned: whether
    evaluated rounds were left out. Clients by group, then by their last cluster."""

    rounds: list[int]
    group: np.ndarray
    cluster: np.ndarray
    thinned: bool


class Holdings(NamedTuple):
    """Who holds what: counts (n, C) training examples per client and class; group (n,) or -1; unseen (n,) bool."""

    counts: np.ndarray
    group: np.ndarray
    unseen: np.ndarray
    label_names: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One run as read from its folder."""

    path: Path
    arm: str
    seed: int
    config: Mapping[str, Any]
    summary: Mapping[str, Any]  # {} while it has not ended
    status: str
    rows: Sequence[Mapping[str, Any]]

    def series(self, metric: str) -> list[tuple[int, float]]:
        """(round, value) where measured."""
        return [(r["round"], float(r[metric])) for r in self.rows if r.get(metric) is not None]

    def final(self, metric: str) -> float | None:
        """The last measured value."""
        found = self.series(metric)
        return found[-1][1] if found else None

    def total(self, *metrics: str) -> dict[int, float]:
        """round -> the sum of these metrics up to it."""
        out, so_far = {}, 0.0
        for row in self.rows:
            so_far += sum(float(row.get(m) or 0.0) for m in metrics)
            out[row["round"]] = so_far
        return out

    @cached_property
    def clients(self) -> list[dict[str, Any]]:
        """Client rows of the newest evaluated round."""
        return round_log.read_clients(self.path)

    @property
    def split(self) -> str:
        """What decides who holds what, as text: equal texts are equal splits."""
        task, federation = _section(self.config, "task"), dict(_section(self.config, "federation"))
        for other in ("per_round", "participation"):
            federation.pop(other, None)
        return json.dumps([self.seed, task.get("data"), federation], sort_keys=True, default=str)

    @property
    def experiment(self) -> str:
        """What the run is but for its seed, as text."""
        kept = {k: v for k, v in self.config.items() if k not in APART}
        return json.dumps(kept, sort_keys=True, default=str)

    @property
    def repeat(self) -> str:
        """The `--set` lines that the run recorded for its repetition."""
        notes = [str(n) for n in self.summary.get("notes") or []]
        return next((n.partition(": ")[2] for n in notes if n.startswith("to repeat: ")), "")

    @cached_property
    def membership(self) -> Membership | None:
        """Clusters of the clients over the evaluated rounds; None without clusters."""
        import numpy as np

        found = [r["round"] for r in self.rows if r.get("clusters/count") is not None]
        if not found:
            return None
        most = min(MOST_COLUMNS, max(2, MOST_CELLS // max(1, len(self.clients))))
        shown = sorted({found[i] for i in np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)})
        at = [{r["client"]: r for r in round_log.read_clients(self.path, n) if not r.get("unseen")} for n in shown]
        known = {c: row for column in at for c, row in column.items()}

        def number(value: Any) -> int:
            return -1 if value is None else int(value)

        last = {c: number(row.get("cluster")) for c, row in known.items()}
        order = sorted(known, key=lambda c: (number(known[c].get("group")), last[c], c))
        cluster = np.array([[number(column.get(c, {}).get("cluster")) for column in at] for c in order], int)
        if not cluster.size or (cluster < 0).all():
            return None
        group = np.array([number(known[c].get("group")) for c in order], int)
        return Membership(shown, group, cluster, len(shown) < len(found))


@dataclass(frozen=True)
class Subject:
    """What a page is about: a run (one arm, one seed), a study, or several of them beside each other."""

    kind: Literal["run", "study", "comparison"]
    sources: Sequence[Path]
    name: str
    study: Mapping[str, Any] | None
    arms: Mapping[str, Sequence[Run]]  # in order; runs that have begun
    planned: int

    @property
    def path(self) -> Path:
        return self.sources[0]

    @property
    def all(self) -> list[Run]:
        return [run for found in self.arms.values() for run in found]

    @property
    def ended(self) -> dict[str, list[Run]]:
        """Only runs that are done: finals of others are finals of nothing."""
        return {arm: [r for r in found if r.summary.get("status") == "done"] for arm, found in self.arms.items()}

    @cached_property
    def metrics(self) -> list[str]:
        """All metric names: scopes first, in the order of the scopes."""
        names = dict.fromkeys(k for run in self.all for row in run.rows for k in row if k != "round")
        used = [n for n in names if any(run.series(n) for run in self.all)]
        order = list(SCOPES)

        def rank(name: str) -> tuple[int, int, int]:
            kind, _, where = name.partition("/")
            base = where.removesuffix("_ex")
            if base not in SCOPES:
                return (2, 0, 0)
            return (
                {"accuracy": 0, "loss": 1}.get(kind, 2) if kind in ("accuracy", "loss") else 1,
                where != base,
                order.index(base),
            )

        return sorted(used, key=rank)

    def scoped(self) -> dict[str, list[str]]:
        """NAME -> its scopes without `_ex`."""
        out: dict[str, list[str]] = {}
        for metric in self.metrics:
            name, _, where = metric.partition("/")
            if where in SCOPES:
                out.setdefault(name, []).append(where)
        return out

    def telling(self) -> list[str]:
        """Metrics that say how good a run is: the scoped ones, clusters, privacy and the method's own."""
        apart = ("bytes", "ray", "time", "clients", "actors")
        return [m for m in self.metrics if not m.endswith("_ex") and m.partition("/")[0] not in apart]


def load(path: Path) -> Subject:
    """A run or a study folder. ConfigError if it is neither."""
    if (path / "study.yaml").is_file():
        return load_study(path)
    if (path / "config.yaml").is_file():
        run = read_run(path)
        return Subject("run", [path], path.name, None, {run.arm: [run]}, 1)
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() and not path.is_dir() else []
    raise ConfigError(
        f"{path}: neither a run (config.yaml) nor a study (study.yaml){nearest(path.name, near)}; "
        "`rayfed runs` lists what is there"
    )


def read_run(path: Path, arm: str | None = None, seed: int | None = None) -> Run:
    """Config, rows, summary and status of a run folder."""
    config = read_yaml(path / "config.yaml")
    return Run(
        path,
        arm or method_name(config),
        int(config.get("seed", 0)) if seed is None else seed,
        config,
        read_json(path / "summary.json"),
        status(path),
        list(round_log.read(path).values()),
    )


def load_study(path: Path) -> Subject:
    """A study folder with the runs that have begun."""
    study = read_yaml(path / "study.yaml")
    planned = list(study_runs(path, study))
    arms: dict[str, list[Run]] = {arm: [] for arm, _, _ in planned}
    for arm, seed, where in planned:
        if (where / "config.yaml").is_file():
            arms[arm].append(read_run(where, arm, seed))
    return Subject("study", [path], str(study_base(study).get("name") or path.name), study, arms, len(planned))


def load_comparison(paths: Sequence[Path]) -> Subject:
    """Several runs and studies as arms of one subject. Runs that differ only in their seed are one arm."""
    parts: list[tuple[Subject, list[Run]]] = []
    alike: dict[str, list[list[Run]]] = {}
    planned = 0
    for path in paths:
        subject = load(path)
        planned += subject.planned
        for runs in subject.arms.values():
            known = alike.setdefault(runs[0].experiment, []) if subject.kind == "run" else []
            same = next((k for k in known if runs[0].seed not in [r.seed for r in k]), None)
            if same is None:
                parts.append((subject, list(runs)))
                known.append(parts[-1][1])
            else:
                same += runs
    parts = [(subject, sorted(runs, key=lambda r: r.seed)) for subject, runs in parts if runs]
    names = _unique([_names(subject, runs) for subject, runs in parts])
    arms = {name: runs for name, (_, runs) in zip(names, parts, strict=True)}
    return Subject("comparison", list(paths), " · ".join(names), None, arms, planned)


def _names(subject: Subject, runs: Sequence[Run]) -> list[str]:
    """Names for an arm of a comparison, the most readable one first, the most telling one last."""
    arm, first = runs[0].arm, runs[0]
    if subject.kind == "study":
        return [arm, f"{subject.name}/{arm}", f"{subject.path.name}/{arm}"]
    seeds = ",".join(str(r.seed) for r in runs)
    return [arm, str(first.config.get("name") or arm), f"{arm} seed {seeds}", f"{arm} {short_id(first.path)}"]


def _unique(names: Sequence[Sequence[str]]) -> list[str]:
    """One name each, all by the same rule where that tells them apart."""
    chosen: list[str] = []
    for level in range(4):
        chosen = [n[min(level, len(n) - 1)] for n in names]
        if len(set(chosen)) == len(chosen):
            return chosen
    return [n if chosen.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(chosen)]


def short_id(path: Path) -> str:
    """The end of a folder name that `new_id` made; `ARM-seed-S` in a study; else the name."""
    path = path.resolve()
    if path.name.startswith("seed-"):
        return f"{path.parent.name}-{path.name}"
    parts = path.name.rsplit("-", 3)
    made = len(parts) == 4 and len(parts[1]) == 8 and parts[1].isdigit() and parts[2].isdigit()
    return parts[3] if made else path.name


def mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where undefined."""
    if not values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def worst_decile(values: Sequence[float], lower_is_better: bool = False) -> float:
    """The mean over the worst tenth of the clients, at least one of them."""
    ranked = sorted(values, reverse=lower_is_better)
    return statistics.fmean(ranked[: math.ceil(len(ranked) / 10)])


# -- settings ----------------------------------------------------------------------------------------------------------


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def flat(config: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """`a.b` -> its value as text."""
    out: dict[str, str] = {}
    for k, v in config.items():
        if isinstance(v, Mapping) and v:
            out |= flat(v, f"{before}{k}.")
        else:
            out[f"{before}{k}"] = v if isinstance(v, str) else json.dumps(v, default=str)
    return out


def differing(subject: Subject) -> dict[str, list[str | None]]:
    """Setting -> its value in each arm, for settings that are not the same in all of them."""
    found = [
        flat({k: v for k, v in runs[0].config.items() if k not in APART}) for runs in subject.arms.values() if runs
    ]
    names = dict.fromkeys(name for values in found for name in values)
    table = {name: [values.get(name) for values in found] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}


# -- who holds what ----------------------------------------------------------------------------------------------------


def holdings(run: Run) -> Holdings | str:
    """The split, made again from the config where that is quick; else the reason why not, as the end of a sentence."""
    kept = {k: v for k, v in run.config.items() if k != "storage"} | {"seed": run.seed}
    found = _holdings(json.dumps(kept, sort_keys=True, default=str))
    if isinstance(found, str):
        return found
    for row in run.clients:
        c, n = row.get("client"), row.get("examples")
        if isinstance(c, int) and n is not None and (c >= len(found.counts) or found.counts[c].sum() != n):
            return "the data is not what it was when the run was made"
    return found


@functools.lru_cache(maxsize=8)
def _holdings(config: str) -> Holdings | str:
    import numpy as np
    from pydantic import ValidationError

    from rayfed import partition
    from rayfed.config.schema import Config

    try:
        c = Config.from_dict(json.loads(config))
        if reason := _not_quick(c.task.data.name, c.task.data.options):
            return reason
        made = partition.build(c)
    except (RayfedError, ValidationError, OSError, ValueError) as error:
        return f"the split cannot be made again here ({str(error).splitlines()[0]})"
    if made.class_counts.shape[1] < 2:
        return "the data has no classes"
    return Holdings(made.class_counts, made.group, np.arange(made.clients) >= made.population, made.label_names)


def _not_quick(name: str, options: Mapping[str, Any]) -> str | None:
    """Why data should not be loaded only for a picture; None if it is small and here."""
    kind, _, rest = name.partition(":")
    if kind == "digits":
        return None
    if kind == "synthetic":
        many = int(options.get("examples", 0)) > QUICK_EXAMPLES
        return "the data is too large to be split again for a picture" if many else None
    if kind == "parquet":
        files = list(Path(rest).glob("*.parquet"))
        if not files:
            return f"its data, {rest}, is not here"
        large = sum(f.stat().st_size for f in files) > QUICK_BYTES
        return "the data is too large to be split again for a picture" if large else None
    return f"data from {name} is not loaded again for a picture"
