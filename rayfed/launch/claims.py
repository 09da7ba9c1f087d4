"""Claims: studies under `benchmarks/claims/` whose verdicts come from numbers.

A file there is a study with one claim or several (`claim:`). `rayfed claims` runs them, writes `benchmarks/CLAIMS.md`, and
keeps the verdicts in `rayfed/launch/claims.json`, which is part of the package and read by `rayfed methods NAME`.
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
from rayfed.launch import claims_page
from rayfed.launch.preflight import load_request
from rayfed.report.statistics import mean_sd
from rayfed.report.study import judge
from rayfed.report.subject import RunRecord, load_study
from rayfed.storage.atomic import durable_write
from rayfed.storage.cache import cache_folder
from rayfed.storage.text_files import json_bytes

VERDICTS = Path(__file__).parent / "claims.json"
CHECKOUT = Path(__file__).parents[2] / "benchmarks"
SHELF = "RAYFED_SHELF"  # environment variable: the folder of data sets
MODELS = "RAYFED_MODELS"  # environment variable: the folder of the models below
PRETRAINED_BY = {  # model -> the command that trains it
    "tiny-vit-digits": "python benchmarks/pretrain_vit.py",
    "tiny-lm-tasks": "python benchmarks/pretrain_tasks.py",
}

RunStudy = Callable[
    [Study, Path], tuple[Path, dict[str, Any]]
]  # (study, folder of studies) -> (its folder, its summary)


# -- files -------------------------------------------------------------------------------------------------------------


def benchmarks_folder() -> Path:
    """Return `benchmarks/` of the checkout that this package is installed from. ConfigError if there is none."""
    if not (CHECKOUT / "claims").is_dir():
        raise ConfigError(
            "claims: they are run from a checkout of the project (benchmarks/claims/ is not part of the package)"
        )
    return CHECKOUT


def claim_files(names: Sequence[str] = ()) -> list[Path]:
    """Return the claims' files, all or those named. ConfigError with a similar name for an unknown one."""
    known = {p.stem: p for p in sorted((benchmarks_folder() / "claims").glob("*.yaml"))}
    unknown = [n for n in names if n not in known]
    if unknown:
        raise ConfigError([f"claims: {n!r} is unknown{nearest(n, known)}; known: {', '.join(known)}" for n in unknown])
    return [known[n] for n in names] if names else list(known.values())


def settings_digest(file: Path) -> str:
    """Return a digest of a claim's settings, which does not depend on comments."""
    return hashlib.sha256(json.dumps(yaml.safe_load(file.read_text()), sort_keys=True).encode()).hexdigest()[:16]


def read_claim(file: Path, shelf: Path | None = None) -> Study:
    """Read a claim's study. ConfigError if it is not a study with claims, or if its data is missing."""
    if shelf is not None:
        os.environ[SHELF] = str(shelf)
    if MODELS in file.read_text():
        os.environ.setdefault(MODELS, str(models_folder()))
    request = load_request(file)
    if not isinstance(request, Study) or not request.claims:
        raise ConfigError(f"{file}: a claim is a study (seeds, arms) with `claim:`")
    return request


def missing_data(file: Path, shelf: Path | None = None) -> str | None:
    """Return why a claim cannot be run here, None if it can: the data shelf or a model that it starts from is missing."""
    text = file.read_text()
    if SHELF in text and shelf is None and SHELF not in os.environ:
        return f"its data is on the data shelf: --shelf DIR, or {SHELF}=DIR"
    for name, command in PRETRAINED_BY.items():
        if f"${{{MODELS}}}/{name}" in text and not (models_folder() / name / "config.json").is_file():
            return f"it starts from the model {name}, which is not in {models_folder()}; to make it: {command}"
    return None


def models_folder() -> Path:
    """Return the folder of models that claims start from: $RAYFED_MODELS, or `models` in the cache."""
    return Path(os.environ.get(MODELS) or cache_folder() / "models")


# -- verdicts ----------------------------------------------------------------------------------------------------------


def shipped_verdicts() -> dict[str, dict[str, Any]]:
    """Return the verdicts of the package: claim file -> {title, digest, results, ...}; empty if nothing was judged yet."""
    return json.loads(VERDICTS.read_text()) if VERDICTS.is_file() else {}


def verdicts_about(method: str) -> list[dict[str, Any]]:
    """Return the shipped verdicts about a method, each with the file's name as `study`."""
    entries = shipped_verdicts().items()
    return [{"study": name, **r} for name, entry in entries for r in entry["results"] if r["method"] == method]


def write_verdicts(new: Mapping[str, Mapping[str, Any]]) -> None:
    """Write new verdicts into `rayfed/launch/claims.json`, and `benchmarks/CLAIMS.md` from it; drop claims without a file."""
    files = {f.stem: f for f in claim_files()}
    known = {**shipped_verdicts(), **new}
    verdicts = {name: known[name] for name in files if name in known}
    durable_write(VERDICTS, json_bytes(verdicts, 1))
    durable_write(benchmarks_folder() / "CLAIMS.md", claims_table(verdicts, files).encode())


def claims_table(verdicts: Mapping[str, Mapping[str, Any]], files: Mapping[str, Path]) -> str:
    """Return the content of `benchmarks/CLAIMS.md`: verdicts by claim, and the claims' files."""
    changed = {name for name, entry in verdicts.items() if settings_digest(files[name]) != entry["digest"]}
    return claims_page.render(verdicts, files, changed)


# -- judging -----------------------------------------------------------------------------------------------------------


def judge_claims(
    names: Sequence[str],
    run_study: RunStudy,
    *,
    out: Path,
    shelf: Path | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Run and judge the named claims (default: all), writing the tables after each; returns the verdicts of those that ran.

    run_study: runs a study in the folder `out`; shelf: folder of data sets; log: is called with a line per claim. Claims whose
    data is missing keep their verdicts. Every file is read before the first one runs. ConfigError for an unknown name, or for
    a claim that is named but cannot be run.
    """
    chosen = claim_files(names)
    absent = {f: reason for f in chosen if (reason := missing_data(f, shelf))}
    if names and absent:
        raise ConfigError([f"claims: {f.stem}: {reason}" for f, reason in absent.items()])
    studies = {f: read_claim(f, shelf) for f in chosen if f not in absent}
    for f, reason in absent.items():
        log(f"{f.stem}: left as it is, {reason}")
    judged = {}
    for f, study in studies.items():
        log(f"{f.stem}: {len(study.arms)} arms x {len(study.seeds)} seeds")
        path, summary = run_study(study, out)
        judged[f.stem] = judge_study(f, study, path, summary)
        write_verdicts(judged)
    return judged


def find_study(study: Study, out: Path) -> Path | None:
    """Return the newest folder in `out` of a study with the same settings; None if there is none."""
    wanted = json.loads(json.dumps(study.to_dict()))  # as files hold it: shares of ranks have text keys
    same = [p.parent for p in out.glob(f"{study.base.name}-*/study.yaml") if yaml.safe_load(p.read_text()) == wanted]
    return max(same, key=lambda p: p.stat().st_mtime, default=None)


def judge_study(file: Path, study: Study, path: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the verdicts' entry of a claim's file, from the folder and the summary of its study."""
    runs = load_study(path).arms
    first = next(iter(runs.values()))[0]
    results = []
    for claim in study.claims:
        verdict = judge(claim.model_dump(), runs)
        means = {arm: _mean_at(found, claim.metric, claim.at) for arm, found in runs.items()}
        results.append({
            "about": claim.about, "method": claim.method or _subject(study.arms[claim.better], study.arms[claim.than]),
            **{k: v for k, v in verdict.items() if k != "differences"}, "arms": means,
        })  # fmt: skip
    cost = {arm: _cost(study, found) for arm, found in runs.items()}
    walls = [float(r.summary.get("wall_s") or 0.0) for found in runs.values() for r in found]
    return {
        "title": claims_page.head_comment(file)[0], "digest": settings_digest(file), "seeds": list(study.seeds),
        "status": summary["status"], "results": results, "cost": cost, "wall_s": round(sum(walls), 1),
        "versions": first.summary.get("versions", {}),
    }  # fmt: skip


def _subject(better: Config, than: Config) -> str | None:
    """Return the method that a comparison is about, that of the better arm; None if the arms differ in something else."""
    return None if better.method == than.method else better.method.name


def _mean_at(runs: Sequence[RunRecord], metric: str, at: int) -> dict[str, Any]:
    """Return a metric's mean, standard deviation and number of values over runs at a round."""
    values = [v for r in runs if (v := dict(r.series(metric)).get(at)) is not None]
    mean, sd = mean_sd(values)
    return {"mean": mean, "sd": sd, "n": len(values)}


def _cost(study: Study, runs: Sequence[RunRecord]) -> dict[str, float | None]:
    """Return the cost of an arm, means over its runs: `up` and `down`, bytes of a round of all its clients, and `accuracy_per_mb`.

    accuracy_per_mb is the first claimed accuracy (or share of exact answers) over the megabytes, both ways, of the rounds up to
    it.
    """
    up, down = (mean_sd([v for r in runs for _, v in r.series(f"bytes/{n}")])[0] for n in ("up", "down"))
    per_mb = []
    if claimed := next((c for c in study.claims if c.metric.startswith(("accuracy/", "exact/"))), None):
        for r in runs:
            accuracy = dict(r.series(claimed.metric)).get(claimed.at)
            sent = r.cumulative("bytes/up", "bytes/down").get(claimed.at)
            if accuracy is not None and sent:
                per_mb.append(accuracy / sent * 1e6)
    return {"up": up, "down": down, "accuracy_per_mb": mean_sd(per_mb)[0]}
