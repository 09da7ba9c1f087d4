"""Claims: studies under `benchmarks/claims/` whose verdicts are numbers' and not ours.

A file there is a study with one claim or several (`claim:`). `rayfed claims` runs them, writes `benchmarks/CLAIMS.md`, and
keeps the verdicts in `rayfed/launch/claims.json`, which is shipped with the package and read by `rayfed methods NAME`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rayfed.config.schema import Config, Study
from rayfed.errors import ConfigError, nearest
from rayfed.launch.progress import human
from rayfed.storage.atomic import durable_write
from rayfed.storage.cache import cache_folder
from rayfed.storage.text_files import json_bytes

VERDICTS = Path(__file__).parent / "claims.json"
CHECKOUT = Path(__file__).parents[2] / "benchmarks"
SHELF = "RAYFED_SHELF"
MODELS = "RAYFED_MODELS"
MADE_BY = {  # models that are made here, and how
    "tiny-vit-digits": "python benchmarks/pretrain_vit.py",
    "tiny-lm-tasks": "python benchmarks/pretrain_tasks.py",
}

Runs = Callable[[Study, Path], tuple[Path, dict[str, Any]]]  # (study, folder of folders) -> (its folder, its summary)


def folder() -> Path:
    """`benchmarks/` of the checkout that this package is installed from. ConfigError where there is none."""
    if not (CHECKOUT / "claims").is_dir():
        raise ConfigError(
            "claims: they are run from a checkout of the project (benchmarks/claims/ is not part of the package)"
        )
    return CHECKOUT


def files(names: Sequence[str] = ()) -> list[Path]:
    """The claims' files, all or those named. ConfigError naming the nearest for an unknown one."""
    known = {p.stem: p for p in sorted((folder() / "claims").glob("*.yaml"))}
    unknown = [n for n in names if n not in known]
    if unknown:
        raise ConfigError([f"claims: {n!r} is unknown{nearest(n, known)}; known: {', '.join(known)}" for n in unknown])
    return [known[n] for n in names] if names else list(known.values())


def verdicts() -> dict[str, dict[str, Any]]:
    """What the shipped table says: claim file -> {digest, about, results, ...}; empty if nothing was judged yet."""
    return json.loads(VERDICTS.read_text()) if VERDICTS.is_file() else {}


def of_method(name: str) -> list[dict[str, Any]]:
    """The shipped verdicts about one method, each with the file's name as `study`."""
    return [{"study": n, **r} for n, v in verdicts().items() for r in v["results"] if r["method"] == name]


def digest(file: Path) -> str:
    """Of the settings, whatever the comments say."""
    return hashlib.sha256(json.dumps(yaml.safe_load(file.read_text()), sort_keys=True).encode()).hexdigest()[:16]


def read(file: Path, shelf: Path | None = None) -> Study:
    """A claim's study. ConfigError if it is not one, or its data is not here."""
    from rayfed.launch.preflight import load_request

    if shelf is not None:
        os.environ[SHELF] = str(shelf)
    if MODELS in file.read_text():
        os.environ.setdefault(MODELS, str(models()))
    request = load_request(file)
    if not isinstance(request, Study) or not request.claims:
        raise ConfigError(f"{file}: a claim is a study (seeds, arms) with `claim:`")
    return request


def missing_data(file: Path, shelf: Path | None = None) -> str | None:
    """Why a claim cannot be run here: it reads the data shelf, or starts from a model that is made first, which is not here."""
    text = file.read_text()
    if SHELF in text and shelf is None and SHELF not in os.environ:
        return f"its data is on the data shelf: --shelf DIR, or {SHELF}=DIR"
    for name, how in MADE_BY.items():
        if f"${{{MODELS}}}/{name}" in text and not (models() / name / "config.json").is_file():
            return f"it starts from the model {name}, which is not in {models()}; to make it: {how}"
    return None


def models() -> Path:
    """Where models lie that are made here: $RAYFED_MODELS, or `models` in the cache."""
    return Path(os.environ.get(MODELS) or cache_folder() / "models")


def run(
    names: Sequence[str], runs: Runs, *, out: Path, shelf: Path | None = None, told: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """Run and judge the named claims (default: all), writing the tables after each; returns the verdicts of those that ran.

    A study that is already in `out` with the same settings is continued, or taken as it is once it is done. Claims whose data is
    not here keep the verdict they had. Every file is read before the first one runs.
    """
    chosen = files(names)
    absent = {f: why for f in chosen if (why := missing_data(f, shelf))}
    if names and absent:
        raise ConfigError([f"claims: {f.stem}: {why}" for f, why in absent.items()])
    studies = {f: read(f, shelf) for f in chosen if f not in absent}
    for f, why in absent.items():
        told(f"{f.stem}: left as it is, {why}")
    done = {}
    for f, study in studies.items():
        told(f"{f.stem}: {len(study.arms)} arms x {len(study.seeds)} seeds")
        path, summary = runs(study, out)
        done[f.stem] = judged(f, study, path, summary)
        write(done)
    return done


def found(study: Study, out: Path) -> Path | None:
    """The newest folder in `out` of this very study."""
    wanted = json.loads(json.dumps(study.to_dict()))  # as it is written: shares of ranks have text keys
    same = [p.parent for p in out.glob(f"{study.base.name}-*/study.yaml") if yaml.safe_load(p.read_text()) == wanted]
    return max(same, key=lambda p: p.stat().st_mtime, default=None)


def judged(file: Path, study: Study, path: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of one claim's file in the table."""
    from rayfed.report.study import judge
    from rayfed.report.subject import load_study

    runs = load_study(path).arms
    first = next(iter(runs.values()))[0]
    results = []
    for claim in study.claims:
        verdict = judge(claim.model_dump(), runs)
        shown = {arm: _at(found, claim.metric, claim.at) for arm, found in runs.items()}
        results.append({
            "about": claim.about, "method": claim.method or _subject(study.arms[claim.better], study.arms[claim.than]),
            **{k: v for k, v in verdict.items() if k != "differences"}, "arms": shown,
        })  # fmt: skip
    cost = {arm: _cost(study, found) for arm, found in runs.items()}
    walls = [float(r.summary.get("wall_s") or 0.0) for found in runs.values() for r in found]
    return {
        "title": _comment(file)[0], "digest": digest(file), "seeds": list(study.seeds), "status": summary["status"],
        "results": results, "cost": cost, "wall_s": round(sum(walls), 1), "versions": first.summary.get("versions", {}),
    }  # fmt: skip


def _subject(better: Config, than: Config) -> str | None:
    """Return the method that a comparison is about, that of the better arm; None if the arms differ in something else."""
    return None if better.method == than.method else better.method.name


def _at(runs: Sequence[Any], metric: str, at: int) -> dict[str, Any]:
    from rayfed.report.statistics import mean_sd

    values = [v for r in runs if (v := dict(r.series(metric)).get(at)) is not None]
    mean, sd = mean_sd(values)
    return {"mean": mean, "sd": sd, "n": len(values)}


def _cost(study: Study, runs: Sequence[Any]) -> dict[str, float | None]:
    """What travels in a round of all its clients, and what the first accuracy (or share of exact answers) that is claimed costs:
    means over the runs.

    up, down: bytes of a round; accuracy_per_mb: that accuracy over the 10^6 bytes, both ways, of the rounds up to it.
    """
    from rayfed.report.statistics import mean_sd

    out: dict[str, float | None] = {
        n: mean_sd([v for r in runs for _, v in r.series(f"bytes/{n}")])[0] for n in ("up", "down")
    }
    per_mb = []
    if claimed := next((c for c in study.claims if c.metric.startswith(("accuracy/", "exact/"))), None):
        for r in runs:
            accuracy = dict(r.series(claimed.metric)).get(claimed.at)
            sent = r.cumulative("bytes/up", "bytes/down").get(claimed.at)
            per_mb += [accuracy / sent * 1e6] if accuracy is not None and sent else []
    return {**out, "accuracy_per_mb": mean_sd(per_mb)[0]}


def write(new: Mapping[str, Mapping[str, Any]]) -> None:
    """New verdicts into `rayfed/launch/claims.json`, and `benchmarks/CLAIMS.md` from it; claims without a file are forgotten."""
    known = {f.stem: f for f in files()}
    table = {n: v for n, v in {**verdicts(), **new}.items() if n in known}
    table = {n: table[n] for n in known if n in table}
    durable_write(VERDICTS, json_bytes(table, 1))
    durable_write(folder() / "CLAIMS.md", page(table, known).encode())


def page(table: Mapping[str, Mapping[str, Any]], known: Mapping[str, Path]) -> str:
    """`benchmarks/CLAIMS.md`: a table of verdicts, then each claim with its settings' reasons and all arms."""
    lines = [
        "# Claims",
        "",
        "Generated by `rayfed claims`; do not edit. Each line is one claim, judged by a paired two-sided 95 % t-interval over",
        "seeds that were not used to choose any setting: *holds* if the interval lies above the margin, *does not hold here* if",
        "below, else *undecided*. Differences are in the direction of improvement; the margin is 0 where none is given.",
        "Of each arm: means over the seeds, what travels in a round of all its clients, and the first claimed accuracy over all",
        "that travelled until then, both ways.",
        "",
        "| claim | difference [95 % interval] | verdict |",
        "|---|---|---|",
    ]
    for name, entry in table.items():
        for r in entry["results"]:
            low, high = r["ci95"] or (None, None)
            lines.append(
                f"| [{name}](#{name}): {r['about']} ({r['better']} against {r['than']}, {r['metric']} at round {r['at']}, {r['n']} "
                f"seeds{_margin(r)}) | {_signed(r['mean_difference'])} [{_signed(low)}, {_signed(high)}] | *{r['verdict']}* |"
            )
    for name, entry in table.items():
        comment = _comment(known[name])
        lines += ["", f"## {name}", "", *comment, "", f"`rayfed claims {name}`, seeds {_span(entry['seeds'])}"]
        lines[-1] += (
            f"; {entry['wall_s'] / 60:.0f} minutes of runs; {', '.join(f'{k} {v}' for k, v in entry['versions'].items())}."
        )
        if digest(known[name]) != entry["digest"]:
            lines += ["", "**The settings have changed since; this verdict is about the former ones.**"]
        columns = {(r["metric"], r["at"]): r["arms"] for r in entry["results"]}
        arms = list(dict.fromkeys(a for shown in columns.values() for a in shown))
        heads = [f"{m} @{at}" for m, at in columns] + ["up a round", "down a round", "accuracy per MB"]
        lines += ["", "| arm | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for arm in arms:
            cells = [*(_mean(shown[arm]) for shown in columns.values()), *_sent(entry.get("cost", {}).get(arm, {}))]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def numbers(r: Mapping[str, Any]) -> str:
    """What a verdict rests on, in one line."""
    low, high = r["ci95"] or (None, None)
    return (
        f"{r['metric']} at round {r['at']}, {r['better']} - {r['than']}: {_signed(r['mean_difference'])} "
        f"(95 % {_signed(low)} to {_signed(high)}, {r['n']} seeds{_margin(r)})"
    )


def _comment(file: Path) -> list[str]:
    """The comment at the head of a claim's file."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return lines or [file.stem]


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}" if abs(value) < 1000 else f"{value:+,.0f}"


def _margin(r: Mapping[str, Any]) -> str:
    """ ", margin 0.05" or ", margin 3,639,380"; nothing for none."""
    v = r["margin"]
    return "" if not v else f", margin {v:,.0f}" if abs(v) >= 1000 else f", margin {v:g}"


def _mean(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "–"
    form = ".4f" if abs(found["mean"]) < 1000 else ",.0f"
    return f"{found['mean']:{form}}" + ("" if found["sd"] is None else f" ± {found['sd']:{form}}")


def _sent(cost: Mapping[str, float | None]) -> list[str]:
    sizes = ["–" if (v := cost.get(n)) is None else human(v) for n in ("up", "down")]
    return [*sizes, "–" if not (v := cost.get("accuracy_per_mb")) else f"{v:.3g}"]


def _span(seeds: Sequence[int]) -> str:
    whole = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if whole and len(seeds) > 1 else ", ".join(map(str, seeds))
