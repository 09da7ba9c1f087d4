"""Verdicts under changed code: one seed of every arm is run again, and where it gives what is published the verdict stands."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfed.errors import ConfigError
from rayfed.launch import claim_provenance, claims
from rayfed.launch.claim_file import ClaimFile, change_of
from rayfed.launch.claim_rows import pack, unpack
from rayfed.launch.claim_runs import RunStudies
from rayfed.report.subject import RunRecord, load_study


def confirm_claims(
    names: Sequence[str], run_studies: RunStudies, *, out: Path, shelf: Path | None = None, log: claims.Log = print
) -> dict[str, list[str]]:
    """Run the first seed of every arm again for the named verdicts (default: all) whose code alone has changed since they were judged.

    An arm has the settings that were chosen for it then. Where every published value of these runs comes out the same, to the last bit,
    today's code counts as the verdict's own. Arguments as in `rayfed.launch.claims.judge_claims`. Returns claim file -> what is not the
    same, nothing where it is confirmed. ConfigError for a claim that is named and has nothing to confirm, or cannot be run.
    """
    files = _confirmable(names, shelf, log)
    found = {}
    for file in files:
        entry = claims.shipped_verdicts()[file.name]
        code = claim_provenance.code_digest(file.study)
        study = _first_seed(file, entry)
        log(f"{file.name}: {len(study.arms)} arms x 1 seed")
        (done,) = run_studies([study], claims.runs_folder(out, file.name, code))
        runs = load_study(done.folder).arms
        count, differing = compared(entry, runs)
        found[file.name] = differing
        if differing:
            said = f"{len(differing)} of {count} values differ, as {differing[0]}"
            log(f"{file.name}: stays stale: {said}{_elsewhere(file.name, entry, runs)}")
            continue
        made: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "commit": claim_provenance.commit(claims.benchmarks_folder()),
        }
        made |= {"code": code, "machine": claim_provenance.machine(), "seed": entry["seeds"][0], "values": count}
        claims.write_verdicts({file.name: {**entry, "confirmed": [*entry.get("confirmed", ()), made]}})
        log(f"{file.name}: confirmed: all {count} values are the same")
    return found


def compared(entry: Mapping[str, Any], runs: Mapping[str, Sequence[RunRecord]]) -> tuple[int, list[str]]:
    """Return how many values an entry publishes of its first seed (scores by row of a run count as one), and a sentence for each
    that these runs do not give."""
    checked = list(_checked(entry, runs))
    return len(checked), [said for said in checked if said]


def _checked(entry: Mapping[str, Any], runs: Mapping[str, Sequence[RunRecord]]) -> Iterator[str]:
    """Yield for each published value of the first seed what differs, "" where nothing does."""
    seed, packed = str(entry["seeds"][0]), entry.get("rows") or {}
    judged = list(dict.fromkeys((r["metric"], r["at"]) for r in entry["results"]))
    again = pack(runs, judged)
    published = {(r["metric"], r["at"], arm): v for r in entry["results"] for arm, v in r["values"].items()}
    for (metric, at, arm), values in published.items():
        now = claims.values_at(runs.get(arm, ()), metric, at).get(seed)
        same = now == values.get(seed)
        yield "" if same else f"{arm}, {metric} at round {at}: {now} in place of {values.get(seed)}"
    for metric, at in judged:
        for arm in packed.get("scores", {}).get(f"{metric} @{at}", {}):
            rows = [unpack(p, metric, at, arm).get(seed) for p in (packed, again)]
            yield "" if _same_rows(*rows) else f"{arm}, {metric} at round {at}: other scores by row"


def _same_rows(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return all(getattr(a, n).tobytes() == getattr(b, n).tobytes() for n in ("rows", "values", "weights"))


def _first_seed(file: ClaimFile, entry: Mapping[str, Any]) -> Any:
    """Return the study of a verdict's first seed, with the settings that were chosen for its arms."""
    changes = {arm: change_of(found["chosen"]) for arm, found in entry["tuned"].items()}
    return file.part(entry["seeds"][:1], changes)


def _elsewhere(name: str, entry: Mapping[str, Any], runs: Mapping[str, Sequence[RunRecord]]) -> str:
    """Return in what this sitting differs from the one that judged, where the same bits cannot be asked for; else nothing."""
    execution = {arm: found[0].repeat_options for arm, found in runs.items()}
    versions = next(iter(runs.values()))[0].summary.get("versions", {})
    now = {"machine": claim_provenance.machine(), "versions": versions, "execution": execution}
    other = [k for k, value in now.items() if entry.get(k) != value]
    if not other:
        return ""
    return (
        f". It was judged under other {', '.join(other)}, so the same bits cannot be expected; "
        f"whether its verdicts come out the same says: rayfed claims {name} --reproduce"
    )


def _confirmable(names: Sequence[str], shelf: Path | None, log: claims.Log) -> list[ClaimFile]:
    """Return the files of which the code alone has changed since they were judged; ConfigError for others that are named."""
    verdicts, found, said = claims.shipped_verdicts(), [], {}
    for path in claims.claim_files(names):
        entry = verdicts.get(path.stem)
        changed = claims.whats_changed(path, entry) if entry else []
        if entry is None or entry.get("withdrawn"):
            said[path.stem] = "withdrawn" if entry else "never judged"
        elif "settings" in changed:
            said[path.stem] = "settings changed since it was judged"
        elif not changed:
            said[path.stem] = "known under this code"
        elif reason := claims.missing_data(path, shelf):
            said[path.stem] = reason
        else:
            found.append(claims.read_claim(path, shelf))
    if names and said:
        raise ConfigError([f"claims: {n}: {why}, so there is nothing to confirm" for n, why in said.items()])
    for n, why in said.items():
        log(f"{n}: left as it is, {why}")
    return found
