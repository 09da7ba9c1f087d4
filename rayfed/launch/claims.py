"""Claims: studies under `benchmarks/claims/` whose verdicts come from numbers.

A file there is a study with one claim or several (`claim:`) and its registration (`claim_file`). `rayfed claims` tunes its arms,
runs them, checks that they are stable, judges, writes `benchmarks/CLAIMS.md`, and keeps the verdicts with all that they rest on
in `rayfed/launch/claims.json`, which is part of the package and read by `rayfed methods NAME`.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfed.config.load import load_config
from rayfed.config.schema import Config, Study
from rayfed.errors import ConfigError, nearest
from rayfed.launch import claim_check, claim_provenance, claim_quotes, claim_rows, claim_table, claims_page
from rayfed.launch.claim_file import ClaimFile, as_written, change_of, read_claim_file, trials
from rayfed.launch.claim_runs import Ran, RunStudies
from rayfed.launch.claim_tuning import AS_DOUBLE, AS_LOOP, tune
from rayfed.report.statistics import mean_sd, spent_alpha
from rayfed.report.study import POINT, is_share, judge
from rayfed.report.subject import RunRecord, load_study
from rayfed.storage.atomic import durable_write
from rayfed.storage.cache import cache_folder
from rayfed.storage.text_files import json_bytes

VERDICTS = Path(__file__).parent / "claims.json"
CHECKOUT = Path(__file__).parents[2] / "benchmarks"
SHELF = "RAYFED_SHELF"  # environment variable: the folder of data sets
MODELS = "RAYFED_MODELS"  # environment variable: the folder of the models below; default: `models` in the cache
SUBSTRATES = "RAYFED_SUBSTRATES"  # environment variable: the folder of data that packages carry; default: `substrates` in the cache
MADE_BY = {  # what stands in these folders -> the command that makes it
    f"${{{MODELS}}}/tiny-vit-digits": "python benchmarks/pretrain_vit.py",
    f"${{{MODELS}}}/tiny-lm-tasks": "python benchmarks/pretrain_tasks.py",
    f"${{{SUBSTRATES}}}/fashion_mnist_small": "python benchmarks/substrates.py fashion_mnist_small",
    f"${{{SUBSTRATES}}}/banking77_minilm": "python benchmarks/substrates.py banking77_minilm --shelf DIR",
}
MINUTES = re.compile(r"[Aa]bout (\d+) minutes?\b")
OPEN = ("undecided", "incomplete", "unstable")  # verdicts that decide nothing

Log = Callable[[str], None]


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


def read_claim(file: Path, shelf: Path | None = None) -> ClaimFile:
    """Read a claim's file with the variables that it needs. ConfigError if it is wrong, or if its data is missing."""
    if shelf is not None:
        os.environ[SHELF] = str(shelf)
    for name, folder in _folders().items():
        os.environ.setdefault(name, str(folder))
    return read_claim_file(file)


def missing_data(file: Path, shelf: Path | None = None) -> str | None:
    """Return why a claim cannot be run here, None if it can: the data shelf or a model that it starts from is missing."""
    text = json.dumps(as_written(file), default=str)
    where = shelf or os.environ.get(SHELF)
    for name in sorted(set(re.findall(rf"\$\{{{SHELF}\}}/([\w-]+)", text))):
        if where is None:
            return f"its data is on the data shelf: --shelf DIR, or {SHELF}=DIR"
        if not (Path(where) / name / "train.parquet").is_file():
            return f"{name} is not on the data shelf {where}"
    for name, command in MADE_BY.items():
        folder = Path(
            name.replace(f"${{{MODELS}}}", str(models_folder())).replace(f"${{{SUBSTRATES}}}", str(substrates_folder()))
        )
        if name in text and not any((folder / f).is_file() for f in ("config.json", "train.parquet")):
            return f"it needs {folder.name}, which is not in {folder.parent}; to make it: {command}"
    return None


def models_folder() -> Path:
    """Return the folder of models that claims start from: $RAYFED_MODELS, or `models` in the cache."""
    return Path(os.environ.get(MODELS) or cache_folder() / "models")


def substrates_folder() -> Path:
    """Return the folder of data that `benchmarks/substrates.py` makes: $RAYFED_SUBSTRATES, or `substrates` in the cache."""
    return Path(os.environ.get(SUBSTRATES) or cache_folder() / "substrates")


def _folders() -> dict[str, Path]:
    """Return environment variable -> folder, of those that have a default."""
    return {MODELS: models_folder(), SUBSTRATES: substrates_folder()}


# -- verdicts ----------------------------------------------------------------------------------------------------------


def shipped_verdicts() -> dict[str, dict[str, Any]]:
    """Return the verdicts of the package: claim file -> {title, digest, results, ...}; empty if nothing was judged yet."""
    return json.loads(VERDICTS.read_text(encoding="utf-8")) if VERDICTS.is_file() else {}


def verdicts_about(method: str) -> list[dict[str, Any]]:
    """Return the shipped verdicts about a method that were not withdrawn, each with the file's name as `study`."""
    entries = [(n, e) for n, e in shipped_verdicts().items() if not e.get("withdrawn")]
    return [{"study": name, **r} for name, entry in entries for r in entry["results"] if r["method"] == method]


def judged_against(method: str) -> list[str]:
    """Return the claim files in which methods are held against this one."""
    entries = [(n, e) for n, e in shipped_verdicts().items() if not e.get("withdrawn")]
    return [n for n, e in entries if any(r.get("against") == method != r["method"] for r in e["results"])]


def write_verdicts(new: Mapping[str, Mapping[str, Any]]) -> None:
    """Write new verdicts into `rayfed/launch/claims.json`, and from it the pages in `benchmarks/` and the figures that documents quote.

    An entry whose file is gone, or withdrawn in it, stays listed as withdrawn, and so does a claim that its file makes no more.
    """
    files = {f.stem: f for f in claim_files()}
    before = shipped_verdicts()
    known = {**before, **{n: _with_former(e, before.get(n, {})) for n, e in new.items()}}
    order = [*(n for n in files if n in known), *(n for n in known if n not in files)]
    verdicts = {name: _withdrawn(known[name], files.get(name)) for name in order}
    durable_write(VERDICTS, json_bytes(verdicts, 1))
    for name, text in pages(verdicts, files).items():
        durable_write(benchmarks_folder() / name, text.encode())
    for document in claim_quotes.documents(benchmarks_folder().parent):
        text = document.read_text(encoding="utf-8")
        if (now := claim_quotes.with_figures(text, verdicts)) != text:
            durable_write(document, now.encode())


def _with_former(entry: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new entry with the claims of the one before it that its file makes no more: they stay listed."""
    asked = {(r["metric"], r["at"], r["about"]) for r in entry["results"]}
    gone = [r for r in before.get("results", ()) if (r["metric"], r["at"], r["about"]) not in asked]
    kept = ("about", "metric", "at", "better", "than", "mean_difference", "ci95", "ci95_rows", "verdict")
    former = [{**{k: r.get(k) for k in kept}, "why": "its file asks it no more"} for r in gone]
    listed = [*before.get("former", ()), *former]
    return {**entry, "former": listed} if listed else dict(entry)


def _withdrawn(entry: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """Return an entry with the reason why it was withdrawn, if it was."""
    if file is None:
        return {**entry, "withdrawn": entry.get("withdrawn") or "its file was removed"}
    registered = as_written(file).get("registered") or {}
    kept = {k: v for k, v in entry.items() if k != "withdrawn"}
    return {**kept, "withdrawn": registered["withdrawn"]} if registered.get("withdrawn") else kept


def pages(verdicts: Mapping[str, Mapping[str, Any]], files: Mapping[str, Path]) -> dict[str, str]:
    """Return file name in `benchmarks/` -> content: CLAIMS.md, verdicts by claim and the claims' files; and the table of the personalised
    methods, where these files are there."""
    changed = {name: whats_changed(files[name], entry) for name, entry in verdicts.items() if name in files}
    made = {"CLAIMS.md": claims_page.render(verdicts, files, changed)}
    if all(n in files for n in claim_table.FILES):
        arms = {n: list(as_written(files[n])["arms"]) for n in claim_table.FILES}
        made[claim_table.PAGE] = claim_table.render(verdicts, changed, arms)
    return made


def whats_changed(file: Path, entry: Mapping[str, Any]) -> list[str]:
    """Return what has changed since an entry was judged: its file's settings, the code behind it."""
    unset = {n: str(f) for n, f in {SHELF: "/", **_folders()}.items() if n not in os.environ}
    os.environ.update(unset)  # the file cannot be read without the variables that it names
    try:
        claim = read_claim_file(file, load_config)  # its data need not be there
    except ConfigError:
        return ["settings"]
    finally:
        for name in unset:
            del os.environ[name]
    return claim_provenance.changed(entry, claim.digest, claim_provenance.code_digest(claim.study))


def check(names: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return what the published values of these verdicts (default: all) do not give, and the claim files that have no values.

    ConfigError for an unknown name.
    """
    if names:
        claim_files(names)
    found = {n: e for n, e in shipped_verdicts().items() if (not names or n in names) and not e.get("withdrawn")}
    known = {n: e for n, e in found.items() if claim_check.has_values(e)}
    without = [n for n in (names or found) if n not in known]
    return [p for n, e in known.items() for p in claim_check.differences(n, e)], without


# -- judging -----------------------------------------------------------------------------------------------------------


def plan(names: Sequence[str] = (), shelf: Path | None = None) -> list[tuple[str, int, float | None]]:
    """Return (claim file, its runs, minutes of one core that they take) of the named claims (default: all) that can be run here.

    Minutes are those of its last judgement; else what its comment says ("About 20 minutes"); else those of runs of other settings, by
    their number; None where nothing is known.
    """
    out = []
    for path in claim_files(names):
        if missing_data(path, shelf) is not None:
            continue
        file = read_claim(path, shelf)
        if file.registered and file.registered.withdrawn:
            continue
        entry, runs = shipped_verdicts().get(file.name, {}), planned_runs(file)
        before = entry.get("runs") or sum(len(entry.get("seeds", ())) for _ in entry.get("cost", ()))
        minutes = runs / before * entry["wall_s"] / 60 if before else None
        said = MINUTES.search("\n".join(claims_page.head_comment(path)))
        out.append((file.name, runs, float(said[1]) if said and entry.get("digest") != file.digest else minutes))
    return out


def planned_runs(file: ClaimFile) -> int:
    """Return how many runs a claim file takes: trials of its grid (not those beyond), arms with all seeds, the checks of stability."""
    block = file.registered.tune if file.registered else None
    tuning = sum(len(t) * block.seeds for arm in file.study.arms if (t := trials(block, arm))[0]) if block else 0
    return tuning + len(file.study.arms) * file.looks[-1] + 2 * len(_checked_arms(file.study))


def judge_claims(
    names: Sequence[str],
    run_studies: RunStudies,
    *,
    out: Path,
    shelf: Path | None = None,
    reproduce: bool = False,
    log: Log = print,
) -> dict[str, dict[str, Any]]:
    """Run and judge the named claims (default: all), writing the tables after each; returns the entries of those that ran.

    run_studies: runs studies in the folder `out`; shelf: folder of data sets; reproduce: the shipped verdicts stay, and whether
    this machine finds the same is added to them; log: is called with a line per step. Claims whose data is missing, and those
    withdrawn, keep their verdicts. Every file is read before the first one runs. ConfigError for an unknown name, or for a
    claim that is named but cannot be run.
    """
    chosen = claim_files(names)
    absent = {f: reason for f in chosen if (reason := missing_data(f, shelf))}
    if names and absent:
        raise ConfigError([f"claims: {f.stem}: {reason}" for f, reason in absent.items()])
    files = [read_claim(f, shelf) for f in chosen if f not in absent]
    if reproduce:
        files = _reproducible(files, bool(names), log)
    for f, reason in absent.items():
        log(f"{f.stem}: left as it is, {reason}")
    judged = {}
    for file in files:
        if file.registered and file.registered.withdrawn:
            log(f"{file.name}: withdrawn: {file.registered.withdrawn}")
            continue
        entry = judge_file(file, run_studies, out, log)
        if reproduce:
            entry = claims_page.with_reproduction(shipped_verdicts()[file.name], entry)
        judged[file.name] = entry
        write_verdicts(judged)
    return judged


def _reproducible(files: list[ClaimFile], named: bool, log: Log) -> list[ClaimFile]:
    """Return the files whose shipped verdicts are of the same settings; ConfigError for others that are named."""
    digests = {n: e.get("digest") for n, e in shipped_verdicts().items()}
    other = [f.name for f in files if digests.get(f.name) != f.digest]
    said = {n: "settings changed since it was judged" if n in digests else "never judged" for n in other}
    if named and said:
        raise ConfigError([f"claims: {n}: {why}, so there is no verdict to reproduce" for n, why in said.items()])
    for n, why in said.items():
        log(f"{n}: left as it is, {why}")
    return [f for f in files if f.name not in said]


def runs_folder(out: Path, name: str, code: str) -> Path:
    """Return the folder in `out` of a claim file's runs under this digest of code: what other code gave is not taken for its own."""
    return out / f"{name}-{code}"


def judge_file(file: ClaimFile, run_studies: RunStudies, out: Path, log: Log = print) -> dict[str, Any]:
    """Tune, run, check and judge one claim file; returns its entry of claims.json."""
    code = claim_provenance.code_digest(file.study)  # before the first run: these processes import it now
    out = runs_folder(out, file.name, code)
    spent: list[RunRecord] = []  # runs of tuning and of stability

    def counted(studies: Sequence[Study], folder: Path) -> list[Ran]:
        made = run_studies(studies, folder)
        spent.extend(r for done in made if done.path for found in load_study(done.path).arms.values() for r in found)
        return made

    tuned = tune(file, list(_checked_arms(file.study)), counted, out, log)
    changes = {arm: change_of(found["chosen"]) for arm, found in tuned.items()}
    seeds, status, results = list(file.study.seeds), "done", []
    runs: dict[str, list[RunRecord]] = {}
    levels = spent_alpha(file.looks)
    for seen, until, alpha in zip([0, *file.looks], file.looks, levels, strict=False):
        log(f"{file.name}: {len(file.study.arms)} arms x seeds {seen + 1} to {until}")
        for done in counted([file.part([seed], changes) for seed in seeds[seen:until]], out):
            for arm, found in load_study(done.folder).arms.items():
                runs.setdefault(arm, []).extend(found)
            status = done.status if status == "done" else status
        results = [_judged(file.study, c, runs, seeds[:until], alpha) for c in file.study.claims]
        if all(r["verdict"] not in OPEN for r in results):
            break
    unstable = stability(file, runs, changes, counted, out, log)
    for r in results:
        shaken = [arm for arm in (r["better"], r["than"]) if unstable.get(arm, {}).get("unstable")]
        if shaken and r["kind"] == "difference":
            r |= {"verdict": "unstable", "holds": None, "unstable": shaken}
    entry = _entry(file, code, runs, seeds[: len(next(iter(runs.values())))], status, results, tuned, unstable)
    walls = [float(r.summary.get("wall_s") or 0.0) for r in spent]
    return {**entry, "wall_s": round(sum(walls), 1), "runs": len(walls)}


def _judged(
    study: Study, claim: Any, runs: Mapping[str, Sequence[RunRecord]], seeds: Sequence[int], alpha: float
) -> dict[str, Any]:
    """Return a claim's verdict with the values that it rests on."""
    verdict = judge(claim.model_dump(), runs, seeds=seeds, alpha=alpha)
    kind = "bytes" if claim.metric.startswith("bytes/") else claim.kind
    values = {arm: values_at(found, claim.metric, claim.at) for arm, found in runs.items()}
    means = {
        arm: dict(zip(("mean", "sd"), mean_sd(list(v.values())), strict=True), n=len(v)) for arm, v in values.items()
    }
    return {
        "about": claim.about, "method": claim.method or _subject(study.arms[claim.better], study.arms[claim.than]),
        "against": study.arms[claim.than].method.name,
        "kind": kind, **{k: v for k, v in verdict.items() if k != "differences"}, "arms": means, "values": values,
    }  # fmt: skip


def _entry(
    file: ClaimFile,
    code: str,
    runs: Mapping[str, Sequence[RunRecord]],
    seeds: Sequence[int],
    status: str,
    results: Sequence[Mapping[str, Any]],
    tuned: Mapping[str, Any],
    unstable: Mapping[str, Any],
) -> dict[str, Any]:
    first = next(iter(runs.values()))[0]
    execution = {arm: found[0].repeat_options for arm, found in runs.items()}
    return {
        "title": claims_page.head_comment(file.path)[0], "like": file.like, "digest": file.digest,
        "code": code,
        "registered": str(file.registered.date) if file.registered else None,
        "judged": datetime.date.today().isoformat(), "commit": claim_provenance.commit(benchmarks_folder()),
        "machine": claim_provenance.machine(), "execution": execution,
        "threads": next(iter(file.study.arms.values())).resources.cpus_per_actor, "versions": first.summary.get("versions", {}),
        "seeds": list(seeds), "looks": file.looks, "status": status, "results": list(results),
        "tuned": dict(tuned), "stability": dict(unstable),
        "cost": {arm: _cost(file.study, found) for arm, found in runs.items()},
        "rows": claim_rows.pack(runs, [(c.metric, c.at) for c in file.study.claims]),
    }  # fmt: skip


def _subject(better: Config, than: Config) -> str | None:
    """Return the method that a comparison is about, that of the better arm; None if the arms differ in something else."""
    return None if better.method == than.method else better.method.name


def values_at(runs: Sequence[RunRecord], metric: str, at: int) -> dict[str, float]:
    """Return seed -> a metric's value at a round."""
    return {str(r.seed): v for r in runs if (v := dict(r.series(metric)).get(at)) is not None}


# -- stability ---------------------------------------------------------------------------------------------------------


def stability(
    file: ClaimFile,
    runs: Mapping[str, Sequence[RunRecord]],
    changes: Mapping[str, Mapping[str, Any]],
    run_studies: RunStudies,
    out: Path,
    log: Log = print,
) -> dict[str, dict[str, Any]]:
    """Run one seed of every claimed arm again under `loop` and in float64; returns arm -> {values, spread, unstable, why}.

    An arm is unstable if a claimed share (accuracy ...) differs by more than a point between them, or if a run fell to
    chance after having been above it, which events say.
    """
    arms = _checked_arms(file.study)
    log(f"{file.name}: stability of {len(arms)} arms")
    kinds = (("loop", AS_LOOP), ("float64", AS_DOUBLE))
    studies = [file.alone(a, [runs[a][0].seed], [changes.get(a, {}), change]) for a in arms for _, change in kinds]
    made = iter(run_studies(studies, out))
    return {
        arm: _compared(arm, metrics, runs[arm], {name: next(made) for name, _ in kinds})
        for arm, metrics in arms.items()
    }


def _checked_arms(study: Study) -> dict[str, list[tuple[str, int]]]:
    """Return the arms whose shares are claimed, each with these metrics and rounds."""
    claims = [c for c in study.claims if is_share(c.metric) and c.kind == "difference"]
    arms = dict.fromkeys(a for c in claims for a in (c.better, c.than))
    return {a: list(dict.fromkeys((c.metric, c.at) for c in claims if a in (c.better, c.than))) for a in arms}


def _compared(
    arm: str, metrics: Sequence[tuple[str, int]], runs: Sequence[RunRecord], again: Mapping[str, Ran]
) -> dict[str, Any]:
    """Return how far an arm's first run and its repetitions are apart, and whether that is too far."""

    def at(run: RunRecord) -> dict[str, float | None]:
        return {f"{m} @{t}": dict(run.series(m)).get(t) for m, t in metrics}

    values = {"judged": at(runs[0])}
    problems = [f"seed {r.seed} fell to chance" for r in runs if r.summary.get("collapsed")]
    for name, made in again.items():
        if made.error is None:
            values[name] = at(load_study(made.folder).arms[arm][0])
            continue
        values[name] = dict.fromkeys(values["judged"])
        if made.diverged:
            problems.append(f"it diverges in {name}")
        elif not isinstance(made.error, ConfigError):  # what float64 or loop cannot do is not compared
            raise made.error
    spreads = [
        max(v) - min(v)
        for k in values["judged"]
        if len(v := [x for n in values if (x := values[n][k]) is not None]) > 1
    ]
    spread = max(spreads, default=None)
    if spread is not None and spread > POINT + 1e-12:
        problems.append(f"loop, vmap and float64 are {spread:.4f} apart")
    return {"values": values, "spread": spread, "unstable": bool(problems), "why": problems}


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


if __name__ == "__main__":
    write_verdicts({})
