"""Verdicts under changed code: one seed of every arm gives the published values again, or the verdict stays stale."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rayfed import cli
from rayfed.errors import ConfigError
from rayfed.launch import claim_confirm, claim_provenance, claims
from rayfed.launch.claim_file import drawn_seeds, settings_digest
from rayfed.launch.claim_rows import pack
from rayfed.launch.claim_runs import Ran
from rayfed.report.subject import RunRecord
from rayfed.storage import row_scores

SMALL = """\
# A small claim.
name: small
rounds: 2
task: {data: {name: "synthetic:blobs", examples: 320, classes: 4, features: 8, test: 60}, model: {name: mlp, hidden: [16]}}
federation: {clients: 6}
method: fedavg
evaluate: {every: 1}
track: []
registered: {date: 2026-11-30, seeds: 2, tune: {grid: {local.optimizer.lr: [0.1, 0.3]}, metric: accuracy/global}}
arms: {a: {}, b: {method: fedprox}}
claim: {metric: accuracy/global, at: 2, better: a, than: b, about: it is better}
"""
METRIC, RIGHT = ("accuracy/global", 2), {"a": [1, 0, 1, 1], "b": [1, 0, 0, 1]}


def record(folder: Path, arm: str, seed: int, right: list[int], execution: str = "") -> RunRecord:
    """Return a finished run of four rows, with its scores by row."""
    path = folder / f"{arm}-{seed}"
    path.mkdir(parents=True)
    kept = {"rows": np.arange(4), "sizes": np.array([4]), "accuracy": np.array(right, np.float32)}
    row_scores.write(path, 2, {"global": kept})
    summary = {"versions": {"torch": "2"}, "notes": [f"to repeat: {execution}"]}
    return RunRecord(path, arm, seed, {}, summary, "done", [{"round": 2, "accuracy/global": sum(right) / 4}])


def entry_of(folder: Path, seeds: list[int], **known: Any) -> dict[str, Any]:
    runs = {arm: [record(folder, arm, seed, right) for seed in seeds] for arm, right in RIGHT.items()}
    values = {arm: {str(seed): sum(right) / 4 for seed in seeds} for arm, right in RIGHT.items()}
    means = {arm: {"mean": sum(right) / 4, "sd": 0.0, "n": len(seeds)} for arm, right in RIGHT.items()}
    result = {
        "about": "it is better", "method": "fedavg", "metric": "accuracy/global", "at": 2, "better": "a", "than": "b", "margin": 0.0,
        "n": len(seeds), "mean_difference": 0.25, "ci95": [0.25, 0.25], "verdict": "better", "holds": True, "values": values,
        "arms": means,
    }  # fmt: skip
    entry = {
        "seeds": seeds, "results": [result], "rows": pack(runs, [METRIC]), "versions": {"torch": "2"}, "wall_s": 1.0,
        "tuned": {arm: {"chosen": {"local.optimizer.lr": 0.3}, "trials": [], "edge": []} for arm in RIGHT}, **known,
    }  # fmt: skip
    return json.loads(json.dumps(entry))


def test_a_value_or_a_score_by_row_that_differs_is_named(tmp_path: Path) -> None:
    entry = entry_of(tmp_path / "judged", [5, 6])
    again = {arm: [record(tmp_path / "same", arm, 5, right)] for arm, right in RIGHT.items()}
    assert claim_confirm.compared(entry, again) == (4, [])  # two arms: a value and its rows each
    other = {**again, "a": [record(tmp_path / "rows", "a", 5, [0, 1, 1, 1])]}  # as many right, other ones
    assert claim_confirm.compared(entry, other) == (4, ["a, accuracy/global at round 2: other scores by row"])
    worse = {**again, "b": [record(tmp_path / "value", "b", 5, [0, 0, 0, 1])]}
    assert claim_confirm.compared(entry, worse)[1][0] == "b, accuracy/global at round 2: 0.25 in place of 0.5"
    assert len(claim_confirm.compared(entry, {"a": again["a"]})[1]) == 2  # an arm that did not run
    assert len(claim_confirm.compared(entry, {arm: [] for arm in RIGHT})[1]) == 4


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A checkout with one verdict, judged under code that has changed since; what stands for execution gives `right`."""
    file = tmp_path / "benchmarks" / "claims" / "small.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(SMALL)
    monkeypatch.setattr(claims, "CHECKOUT", tmp_path / "benchmarks")
    monkeypatch.setattr(claims, "VERDICTS", tmp_path / "claims.json")
    digest = settings_digest(file)
    seeds = drawn_seeds("small", digest, 2, "judge")
    known = {"digest": digest, "registered": "2026-11-30", "code": "old", "machine": claim_provenance.machine()}
    entry = entry_of(tmp_path / "judged", seeds, execution=dict.fromkeys(RIGHT, ""), **known)
    (tmp_path / "claims.json").write_text(json.dumps({"small": entry}))
    here = SimpleNamespace(folder=tmp_path, file=file, entry=entry, right=dict(RIGHT), made=[], execution="")

    def load(path: Path) -> Any:
        (study,) = here.made
        arms = {arm: [record(path, arm, study.seeds[0], here.right[arm], here.execution)] for arm in study.arms}
        return SimpleNamespace(arms=arms)

    monkeypatch.setattr(claim_confirm, "load_study", load)
    return here


def confirm(here: SimpleNamespace) -> tuple[dict[str, list[str]], list[str]]:
    said: list[str] = []

    def run(studies: Any, out: Path) -> list[Ran]:
        here.made = list(studies)
        return [Ran(out / f"study-{sum(1 for _ in out.glob('*'))}", "done")]

    return claim_confirm.confirm_claims((), run, out=here.folder / "runs", log=said.append), said


def test_the_same_values_under_other_code_are_known_under_it(judged: SimpleNamespace) -> None:
    assert claims.whats_changed(judged.file, judged.entry) == ["code"]
    found, _ = confirm(judged)
    assert found == {"small": []}
    (study,) = judged.made  # one seed, the first, at the rates that were chosen
    assert list(study.seeds) == judged.entry["seeds"][:1] and {c.local.optimizer.lr for c in study.arms.values()} == {
        0.3
    }
    entry = claims.shipped_verdicts()["small"]
    assert entry["code"] == "old" and len(entry["confirmed"]) == 1 and entry["confirmed"][0]["values"] == 4
    assert claims.whats_changed(judged.file, entry) == [] and "reproductions" not in entry
    page = (judged.folder / "benchmarks" / "CLAIMS.md").read_text()
    assert "**Stale" not in page and "of every arm, run again, gave all 4 published values to the last bit." in page
    assert confirm(judged) == ({}, ["small: left as it is, known under this code"])


def test_other_values_leave_it_stale_and_elsewhere_is_said(judged: SimpleNamespace) -> None:
    judged.right["b"] = [0, 0, 0, 1]
    found, said = confirm(judged)
    assert len(found["small"]) == 2 and claims.shipped_verdicts()["small"] == judged.entry
    assert "stays stale: 2 of 4 values differ" in said[-1] and "--reproduce" not in said[-1]
    judged.execution = "--set resources.cohort=3"
    _, said = confirm(judged)
    assert "judged under other execution, so" in said[-1] and "rayfed claims small --reproduce" in said[-1]


def test_what_cannot_be_confirmed_is_said(judged: SimpleNamespace) -> None:
    judged.file.write_text(SMALL.replace("rounds: 2", "rounds: 3"))
    assert confirm(judged) == ({}, ["small: left as it is, settings changed since it was judged"])
    with pytest.raises(ConfigError, match="settings changed since it was judged, so there is nothing to confirm"):
        claim_confirm.confirm_claims(["small"], lambda *a: [], out=judged.folder)
    (judged.folder / "claims.json").write_text("{}")
    assert confirm(judged)[1] == ["small: left as it is, never judged"]
    both = CliRunner().invoke(cli.app, ["claims", "--confirm", "--check"])
    assert isinstance(both.exception, ConfigError) and "give one of them" in str(both.exception)
