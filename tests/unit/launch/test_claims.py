"""Claims: run, judged, written down; what is shipped belongs to the files that are there."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from rayfed import cli, methods
from rayfed.config.load import load_config
from rayfed.errors import ConfigError, RunFailed
from rayfed.launch import claim_rows, claim_tuning, claims, claims_page
from rayfed.launch.claim_file import read_claim_file, settings_digest
from rayfed.launch.claim_runs import Ran, find_study
from rayfed.report.subject import RunRecord
from rayfed.storage.round_log import read
from rayfed.storage.text_files import read_yaml
from tests import toy
from tests.conftest import ROOT

SMALL = """\
# A small claim.
#
# Said in full here.
name: small
rounds: 2
task: {data: {name: "synthetic:blobs", examples: 320, classes: 4, features: 8, test: 60}, model: {name: mlp, hidden: [16]}}
federation: {clients: 6, partition: {kind: dirichlet, alpha: 0.5}}
local: {epochs: 1, batch_size: 8, optimizer: {lr: 0.1}}
method: fedavg
evaluate: {every: 1}
track: []
registered: {date: 2026-11-30, seeds: 3}
arms:
  plain: {}
  slow: {local: {optimizer: {lr: 0.001}}}
claim:
  - {metric: loss/global, at: 2, better: plain, than: slow, about: a hundred times the rate learns more in two rounds}
  - {metric: accuracy/global, at: 1, better: slow, than: plain, margin: -2, method: fedavg, about: it is not worse by 2}
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "benchmarks" / "claims").mkdir(parents=True)
    (tmp_path / "benchmarks" / "claims" / "small.yaml").write_text(SMALL)
    monkeypatch.setattr(claims, "CHECKOUT", tmp_path / "benchmarks")
    monkeypatch.setattr(claims, "VERDICTS", tmp_path / "claims.json")
    monkeypatch.delenv(claims.SHELF, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str) -> Any:
    return CliRunner().invoke(cli.app, list(words))


@pytest.mark.slow
def test_from_a_file_to_the_table(checkout: Path) -> None:
    said = call("claims", "--jobs", "2", "--json")
    assert said.exit_code == 0, said.output
    assert "small                       10 runs  never judged" in said.stderr
    entry = json.loads((checkout / "claims.json").read_text())["small"]
    assert json.loads(said.stdout) == {"small": entry}
    seeds = entry["seeds"]
    assert len(set(seeds)) == 3
    made = [(read_yaml(p / "study.yaml"), p) for p in (checkout / "runs" / "claims").glob("small-*/*")]
    studies = {study["seeds"][0]: p for study, p in made if len(study["arms"]) == 2}
    runs = {a: [studies[s] / a / f"seed-{s}" for s in seeds] for a in ("plain", "slow")}
    loss = {a: [read(run)[2]["loss/global"] for run in found] for a, found in runs.items()}
    gains = [b - a for a, b in zip(loss["plain"], loss["slow"], strict=True)]
    first, second = entry["results"]
    assert first["mean_difference"] == pytest.approx(statistics.fmean(gains))
    half = 4.302652729911275 * statistics.stdev(gains) / math.sqrt(3)  # t, 97.5 %, two degrees of freedom
    assert first["ci95"] == pytest.approx([statistics.fmean(gains) - half, statistics.fmean(gains) + half])
    assert first["values"]["slow"] == dict(zip(map(str, seeds), loss["slow"], strict=True))
    assert first["arms"]["slow"] == {
        "mean": pytest.approx(statistics.fmean(loss["slow"])), "sd": pytest.approx(statistics.stdev(loss["slow"])), "n": 3,
    }  # fmt: skip
    assert (first["verdict"], first["holds"], first["method"], first["n"]) == ("better", True, None, 3)
    assert (second["holds"], second["method"], second["margin"]) == (True, "fedavg", -2)
    assert set(entry["stability"]) == {"plain", "slow"} and not entry["stability"]["plain"]["unstable"]
    assert set(entry["stability"]["plain"]["values"]) == {"judged", "loop", "float64"}
    assert "resources.executor=vmap" in entry["execution"]["plain"] and entry["registered"] == "2026-11-30"
    rows = [read(run) for run in runs["slow"]]
    sent = [[r[t][f"bytes/{way}"] for r in rows for t in (1, 2)] for way in ("up", "down")]
    per_mb = [1e6 * r[1]["accuracy/global"] / (r[1]["bytes/up"] + r[1]["bytes/down"]) for r in rows]
    means = dict(zip(("up", "down", "accuracy_per_mb"), map(statistics.fmean, [*sent, per_mb]), strict=True))
    assert entry["cost"]["slow"] == pytest.approx(means) and means["up"] > 0
    page = (checkout / "benchmarks" / "CLAIMS.md").read_text()
    assert f"{statistics.fmean(gains):+.4f}" in page and "Said in full here." in page and "*better*" in page

    assert entry["runs"] == 10 and entry["wall_s"] > 0
    by_row = claim_rows.unpack(entry["rows"], "accuracy/global", 1, "slow")
    assert list(by_row) == [str(s) for s in seeds] and all(len(x.rows) == 60 for x in by_row.values())
    assert [x.values.mean() for x in by_row.values()] == pytest.approx(list(second["values"]["slow"].values()))
    assert second["rows"] == 60 and second["ci95_rows"] is not None and first["rows"] == 60
    checked = call("claims", "--check")
    assert checked.exit_code == 0 and "follow from their published values" in checked.stdout

    folders = sorted((checkout / "runs" / "claims").glob("*/*"))
    when = (runs["plain"][0] / "summary.json").stat().st_mtime_ns
    again = call("claims", "small", "--local", "--reproduce")  # what is done is not run again
    assert again.exit_code == 0 and "better" in again.stdout
    assert (runs["plain"][0] / "summary.json").stat().st_mtime_ns == when
    assert re.search(r"small {23} 10 runs  about \d minutes", again.stderr)
    assert sorted((checkout / "runs" / "claims").glob("*/*")) == folders
    (found,) = claims.shipped_verdicts()["small"]["reproductions"]
    assert [r["same"] for r in found["results"]] == [True, True]
    assert "within the interval): 2 of 2" in (checkout / "benchmarks" / "CLAIMS.md").read_text()

    (checkout / "benchmarks" / "claims" / "small.yaml").write_text(SMALL.replace("rounds: 2", "rounds: 3"))
    claims.write_verdicts({})
    assert "Stale: the settings changed" in (checkout / "benchmarks" / "CLAIMS.md").read_text()
    (checkout / "benchmarks" / "claims" / "small.yaml").rename(checkout / "benchmarks" / "claims" / "other.yaml")
    claims.write_verdicts({})
    assert claims.shipped_verdicts()["small"]["withdrawn"] == "its file was removed"
    assert (
        "## Withdrawn" in (checkout / "benchmarks" / "CLAIMS.md").read_text() and claims.verdicts_about("fedavg") == []
    )


class Studies:
    """Stands for execution: writes no folder, and gives runs whose values are a function of arm, seed and settings, or of the
    round too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
        self.value, self.made = value, []
        monkeypatch.setattr(claims, "load_study", self.load)
        monkeypatch.setattr(claim_tuning, "load_study", self.load)

    def __call__(self, studies: Any, out: Path) -> list[Ran]:
        self.made += studies
        return [Ran(out / str(len(self.made) - len(studies) + i), "done") for i in range(len(studies))]

    def load(self, path: Path) -> Any:
        study = self.made[int(path.name)]
        arms = {
            arm: [
                RunRecord(
                    path, arm, seed, {}, {"versions": {}, "wall_s": 1.0, "notes": []}, "done",
                    [
                        {"round": t, **{n: v(t) if callable(v) else v for n, v in self.value(arm, seed, config).items()}}
                        for t in range(1, config.rounds + 1)
                    ],
                )
                for seed in study.seeds
            ]
            for arm, config in study.arms.items()
        }  # fmt: skip
        return SimpleNamespace(arms=arms)


def test_arms_are_tuned_alike_on_validation_rows(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune = "{grid: {local.optimizer.lr: [0.05, 0.2, 0.8]}, seeds: 2, metric: accuracy/global}"
    text = SMALL.replace("seeds: 3}", f"seeds: 3, tune: {tune}}}").replace(
        "slow: {local: {optimizer: {lr: 0.001}}}", "slow: {}"
    )
    file = checkout / "benchmarks" / "claims" / "small.yaml"
    file.write_text(text)
    best = {"plain": 0.2, "slow": 100.0}  # far beyond the grid

    def value(arm: str, seed: int, config: Any) -> dict[str, float]:
        near = -abs(config.local.optimizer.lr - best[arm])
        return {"accuracy/global": near + (seed % 7) / 1000, "loss/global": -near + 0.1 * (arm == "slow")}

    studies = Studies(monkeypatch, value)
    entry = claims.judge_file(claims.read_claim(file), studies, checkout)
    assert {arm: t["chosen"] for arm, t in entry["tuned"].items()} == {
        "plain": {"local.optimizer.lr": 0.2}, "slow": {"local.optimizer.lr": 13.0},
    }  # fmt: skip
    assert (entry["tuned"]["plain"]["edge"], entry["tuned"]["slow"]["edge"]) == ([], ["local.optimizer.lr"])
    trials = [s for s in studies.made if next(iter(s.arms.values())).evaluate.split == "val"]
    assert len(trials) == 8 + 4 and all(  # the last: of what is chosen, under loop and in float64
        next(iter(s.arms.values())).federation.split.val == 0.2 for s in trials
    )
    judged = next(s for s in studies.made if len(s.arms) == 2)
    assert {a: c.local.optimizer.lr for a, c in judged.arms.items()} == {"plain": 0.2, "slow": 13.0}
    assert all(c.evaluate.split == "test" and c.federation.split.val == 0 for c in judged.arms.values())
    assert not set(trials[0].seeds) & set(judged.seeds)
    page = claims_page.render({"small": entry}, {"small": file}, {})
    assert "- slow: local.optimizer.lr 13.0 of 5 tried; **at the edge of the grid: local.optimizer.lr**" in page


def test_what_is_chosen_trains_stably(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune = "{grid: {local.optimizer.lr: [0.05, 0.1, 0.2, 0.4]}, seeds: 2, metric: accuracy/global}"
    file = checkout / "benchmarks" / "claims" / "small.yaml"
    text = SMALL.replace("metric: loss/global, at: 2", "metric: accuracy/global, at: 2")
    file.write_text(text.replace("seeds: 3}", f"seeds: 3, tune: {tune}}}").replace("{lr: 0.001}", "{momentum: 0.5}"))
    scores = {0.05: 0.5, 0.1: 0.745, 0.2: 0.75, 0.4: 0.9, 0.8: 0.1}

    def value(arm: str, seed: int, config: Any) -> dict[str, float]:
        lr, loop = config.local.optimizer.lr, config.resources.executor == "loop"
        shaken = (
            0.05 if arm == "plain" and lr == 0.4 and loop else 0.0
        )  # under the other executor: an arm's best is unstable
        return {"accuracy/global": scores[lr] - shaken + (0.001 if loop else 0.0), "loss/global": 1.0}

    studies = Studies(monkeypatch, value)
    found = claim_tuning.tune(claims.read_claim(file), ["plain"], studies, checkout)
    assert (
        found["slow"]["chosen"] == {"local.optimizer.lr": 0.4} and "passed" not in found["slow"]
    )  # nothing is claimed of it
    assert found["plain"]["chosen"] == {"local.optimizer.lr": 0.1}, "as good as 0.2 to a point, with smaller steps"
    (passed,) = found["plain"]["passed"]
    assert passed == {"settings": {"local.optimizer.lr": 0.4}, "why": ["loop, vmap and float64 are 0.0490 apart"]}
    again = [c for s in studies.made for c in s.arms.values() if c.resources.executor == "loop"]
    assert [c.local.optimizer.lr for c in again] == [0.4, 0.1] and all(c.evaluate.split == "val" for c in again)
    entry = {"tuned": found}
    lines = claims_page._tuning_lines(entry)
    assert "passed over: local.optimizer.lr 0.4 (loop, vmap and float64 are 0.0490 apart)" in lines[3]


def test_rounds_to_a_target_are_tuned_and_judged(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = "rounds to 0.8 of accuracy/global"
    tune = f"{{grid: {{local.optimizer.lr: [0.05, 0.2]}}, seeds: 2, metric: {metric}}}"
    text = (
        SMALL.partition("claim:")[0] + f"claim: {{metric: {metric}, at: 6, better: plain, than: slow, about: fewer}}\n"
    )
    text = text.replace("rounds: 2", "rounds: 6").replace("seeds: 3}", f"seeds: 4, tune: {tune}}}")
    file = checkout / "benchmarks" / "claims" / "small.yaml"
    file.write_text(text)

    def value(arm: str, seed: int, config: Any) -> dict[str, Any]:
        step = (0.2 if arm == "plain" else 0.15) * (1 if config.local.optimizer.lr == 0.2 else 0.5) + (seed % 3) / 100
        return {"accuracy/global": lambda t: step * t}

    studies = Studies(monkeypatch, value)
    entry = claims.judge_file(claims.read_claim(file), studies, checkout)
    assert {arm: t["chosen"]["local.optimizer.lr"] for arm, t in entry["tuned"].items()} == {"plain": 0.2, "slow": 0.2}
    assert all(c.evaluate.every == 1 for s in studies.made for c in s.arms.values())  # also of trials
    (found,) = entry["results"]
    seeds = entry["seeds"]
    gains = [math.ceil(0.8 / (0.15 + s % 3 / 100)) - math.ceil(0.8 / (0.2 + s % 3 / 100)) for s in seeds]
    assert found["mean_difference"] == pytest.approx(statistics.fmean(gains)) and found["mean_difference"] > 0


def test_a_trial_that_diverges_has_no_score_and_other_failures_end_the_command(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = "{grid: {local.optimizer.lr: [0.05, 50.0]}, seeds: 2, metric: accuracy/global}"
    file = checkout / "benchmarks" / "claims" / "small.yaml"
    file.write_text(SMALL.replace("seeds: 3}", f"seeds: 3, tune: {tune}}}"))
    studies = Studies(monkeypatch, lambda arm, seed, config: {"accuracy/global": 0.5, "loss/global": seed % 3})

    def execute(made: Any, out: Path, round: int | None) -> list[Ran]:
        error = RunFailed("NaN in the model")
        error.diverged = round
        diverging = [any(c.local.optimizer.lr == 50 for c in study.arms.values()) for study in made]
        return [Ran(None, error=error) if d else r for d, r in zip(diverging, studies(made, out), strict=True)]

    found = claim_tuning.tune(claims.read_claim(file), (), lambda made, out: execute(made, out, 1), checkout)
    assert [t["score"] for t in found["plain"]["trials"]] == [0.5, None]
    with pytest.raises(RunFailed, match="NaN"):
        claim_tuning.tune(claims.read_claim(file), (), lambda made, out: execute(made, out, None), checkout)


def test_what_depends_on_rounding_has_no_verdict(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SMALL.replace("metric: loss/global, at: 2", "metric: accuracy/global, at: 2")
    file = checkout / "benchmarks" / "claims" / "small.yaml"
    file.write_text(text)

    def value(arm: str, seed: int, config: Any) -> dict[str, float]:
        chance = arm == "plain" and config.task.dtype == "float64"
        return {"accuracy/global": 0.1 if chance else 0.9 + (seed % 5) / 1000 - 0.1 * (arm == "slow")}

    entry = claims.judge_file(claims.read_claim(file), Studies(monkeypatch, value), checkout)
    assert [r["verdict"] for r in entry["results"]] == ["unstable"] * 2 and entry["results"][0]["holds"] is None
    assert entry["stability"]["plain"]["unstable"] and not entry["stability"]["slow"]["unstable"]
    assert "plain is unstable: loop, vmap and float64 are 0.8" in claims_page.render(
        {"small": entry}, {"small": file}, {}
    )


def test_seeds_grow_until_all_is_decided(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = checkout / "benchmarks" / "claims" / "small.yaml"
    file.write_text(SMALL.replace("seeds: 3}", "seeds: [4, 8, 16]}"))
    noise: dict[int, float] = {}

    def value(arm: str, seed: int, config: Any) -> dict[str, float]:
        place = noise.setdefault(seed, len(noise))
        wide = (-1) ** place * (0.3 if place < 4 else 0.01)
        return {"loss/global": 1 + (arm == "slow") * (0.1 + wide), "accuracy/global": 0.5 + 0.2 * (arm == "plain")}

    studies = Studies(monkeypatch, value)
    entry = claims.judge_file(claims.read_claim(file), studies, checkout)
    assert entry["looks"] == [4, 8, 16] and len(entry["seeds"]) in (8, 16)
    parts = [s.seeds for s in studies.made if len(s.arms) == 2]
    assert [s for p in parts for s in p] == list(entry["seeds"])
    assert entry["results"][0]["alpha"] < 0.05 and entry["results"][0]["n"] == len(entry["seeds"])


def test_a_claim_without_its_data_keeps_its_verdict(checkout: Path) -> None:
    file = checkout / "benchmarks" / "claims" / "shelf.yaml"
    file.write_text(
        SMALL.replace(
            '{name: "synthetic:blobs", examples: 320, classes: 4, features: 8, test: 60}', '"parquet:${RAYFED_SHELF}/x"'
        )
    )
    (checkout / "benchmarks" / "claims" / "small.yaml").unlink()
    before = {
        "shelf": {
            "digest": "0",
            "results": [],
            "title": "t",
            "seeds": [1],
            "wall_s": 1.0,
            "versions": {},
            "status": "done",
        }
    }
    (checkout / "claims.json").write_text(json.dumps(before))
    said = call("claims", "--local")
    assert said.exit_code == 0 and "shelf: left as it is" in said.output
    assert claims.shipped_verdicts() == before
    with pytest.raises(ConfigError, match="RAYFED_SHELF"):
        claims.judge_claims(["shelf"], lambda studies, out: [], out=checkout)


def test_wrong_names_and_files_are_refused(checkout: Path) -> None:
    with pytest.raises(ConfigError, match=r"'smal' is unknown \(did you mean 'small'\?\)"):
        claims.claim_files(["smal"])
    (checkout / "benchmarks" / "claims" / "plain.yaml").write_text(SMALL.split("registered:")[0])
    with pytest.raises(ConfigError, match="a claim is a study"):
        claims.judge_claims([], lambda studies, out: [], out=checkout)
    (checkout / "benchmarks" / "claims").rename(checkout / "elsewhere")
    with pytest.raises(ConfigError, match="from a checkout"):
        claims.claim_files()


def test_methods_shows_its_verdicts(checkout: Path) -> None:
    result = {
        "about": "it is good", "method": "scaffold", "metric": "accuracy/global", "at": 3, "better": "a", "than": "b",
        "margin": 0.0, "n": 8, "mean_difference": 0.125, "ci95": [0.1, 0.15], "verdict": "better", "holds": True, "arms": {},
    }  # fmt: skip
    (checkout / "claims.json").write_text(json.dumps({"x": {"results": [result]}}))
    shown = call("methods", "scaffold").output
    assert "better (x)\n      it is good; " in shown and "+0.1250 (95 % +0.1000 to +0.1500, 8 seeds)" in shown
    assert json.loads(call("methods", "scaffold", "--json").output)["claims"][0]["study"] == "x"
    assert "it is good" not in call("methods", "fedavg").output


def test_a_baseline_says_who_is_held_against_it(checkout: Path) -> None:
    result = {
        "about": "it is good", "method": "scaffold", "against": "local_only", "metric": "accuracy/personal", "at": 3, "better": "a",
        "than": "b", "margin": 0.0, "n": 8, "mean_difference": 0.1, "ci95": [0.1, 0.1], "verdict": "better", "arms": {},
    }  # fmt: skip
    own = {**result, "method": "local_only"}
    (checkout / "claims.json").write_text(json.dumps({"x": {"results": [result]}, "y": {"results": [own]}}))
    assert claims.judged_against("local_only") == ["x"] and claims.judged_against("scaffold") == []
    shown = call("methods", "local_only").output
    assert (
        "baseline" in shown
        and "others are held against it in x" in shown
        and "held against" not in call("methods", "ifca").output
    )


def test_a_claim_that_its_file_makes_no_more_stays_listed(checkout: Path) -> None:
    first = {
        "about": "old",
        "metric": "accuracy/global",
        "at": 1,
        "better": "a",
        "than": "b",
        "mean_difference": 0.1,
        "verdict": "better",
    }
    before = {"results": [first, {**first, "about": "kept"}], "former": [{"about": "older"}]}
    now = claims._with_former({"results": [{**first, "about": "kept"}, {**first, "about": "new"}]}, before)
    assert [r["about"] for r in now["former"]] == ["older", "old"] and now["former"][1][
        "why"
    ] == "its file asks it no more"
    assert claims._with_former({"results": [first]}, {"results": [first]}) == {"results": [first]}


def test_a_plan_counts_runs_and_scales_minutes(checkout: Path) -> None:
    file = checkout / "benchmarks" / "claims" / "small.yaml"
    tune = "{grid: {local.optimizer.lr: [0.05, 0.2, 0.8]}, seeds: 2, metric: accuracy/global}"
    file.write_text(SMALL.replace("seeds: 3}", f"seeds: [4, 8], tune: {tune}}}"))
    runs = 2 * 3 * 2 + 2 * 8 + 2 * 2  # tuning, the last look, loop and float64 of both arms
    assert claims.plan() == [("small", runs, None)]
    entry = {"results": [], "runs": 16, "wall_s": 480.0}
    (checkout / "claims.json").write_text(json.dumps({"small": entry}))
    assert claims.plan(["small"]) == [("small", runs, pytest.approx(runs / 2))]
    file.write_text(f"# About 7 minutes.\n{file.read_text()}")
    assert claims.plan(["small"]) == [("small", runs, 7.0)]  # until it is judged as it is now
    (checkout / "claims.json").write_text(json.dumps({"small": {**entry, "digest": settings_digest(file)}}))
    assert claims.plan(["small"]) == [("small", runs, pytest.approx(runs / 2))]
    file.write_text(SMALL.replace("seeds: 3}", "seeds: 3, withdrawn: it was wrong}"))
    assert claims.plan() == []


def test_a_claim_is_about_the_method_in_which_its_arms_differ() -> None:
    one, other = toy.config("fedavg"), toy.config("fedavg", local={"epochs": 3})
    assert claims._subject(toy.config({"name": "fedavg", "server_lr": 0.5}), one) == "fedavg"
    assert claims._subject(toy.config("scaffold"), one) == "scaffold"
    assert claims._subject(other, one) is None


# -- what is shipped -----------------------------------------------------------------------------------------------------

FILES = sorted((ROOT / "benchmarks" / "claims").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_shipped_claims_are_studies_of_fresh_seeds(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(claims.SHELF, "/nowhere")
    monkeypatch.setenv(claims.SUBSTRATES, "/nowhere")
    monkeypatch.setenv(claims.MODELS, "/nowhere")
    made = read_claim_file(file, load_config)  # its data need not be there
    assert made.study.base.name == file.stem and made.registered is not None
    assert claims_page.head_comment(file)[0].endswith(".")
    assert any("minutes" in line for line in claims_page.head_comment(file))
    assert all(c.about for c in made.study.claims)
    accuracies = [c for c in made.study.claims if c.metric.startswith(("accuracy/", "exact/"))]
    assert made.registered.tune or not accuracies or "nothing is tuned" in file.read_text()


def test_the_page_says_of_every_file_what_its_verdicts_are_worth() -> None:
    """Verdicts of files that have changed are stale, and files that nothing is known of yet are listed as such."""
    table = claims.shipped_verdicts()
    shown = {n: e for n, e in table.items() if not e.get("withdrawn")}
    known = {f.stem: f for f in FILES}
    assert shown.keys() <= known.keys()
    page = (FILES[0].parents[1] / "CLAIMS.md").read_text()
    for name, file in known.items():
        if name not in shown:
            assert (
                f"\n### {name}\n\n{claims_page.head_comment(file)[0]}\n"
                in page.partition("## Registered, not judged yet")[2]
            )
            continue
        entry = shown[name]
        assert entry["status"] == "done" and all(r["n"] == len(entry["seeds"]) for r in entry["results"])
        if entry["digest"] != settings_digest(file):
            assert "**Stale: the settings" in page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    for made, text in claims.pages(table, known).items():
        assert text == (FILES[0].parents[1] / made).read_text(), (
            f"{made} is not that of the verdicts and the code: run `make docs`"
        )


def test_every_method_is_judged_by_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a registered file; baselines that others are held against need none of their own."""
    asked = set()
    for name in (claims.SHELF, claims.SUBSTRATES, claims.MODELS):
        monkeypatch.setenv(name, "/nowhere")
    for file in FILES:
        study = read_claim_file(file, load_config).study
        asked |= {c.method or claims._subject(study.arms[c.better], study.arms[c.than]) for c in study.claims}
    assert set(methods.names()) - asked <= {"fedavg", "local_only", "late_fusion"}


def test_personal_models_are_held_against_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every registered file that judges what clients are served has what they reach alone: `local_only`, or FedOA's untied model."""
    for name in (claims.SHELF, claims.SUBSTRATES, claims.MODELS):
        monkeypatch.setenv(name, "/nowhere")
    for file in FILES:
        found = read_claim_file(file, load_config)
        if found.registered and any(c.metric.endswith("/personal") for c in found.study.claims):
            arms = found.study.arms
            assert "alone" in arms or "local_only" in {c.method.name for c in arms.values()}, file.stem


def test_a_study_of_ranks_is_found_again(tmp_path: Path) -> None:
    """Shares of ranks are keyed by numbers, which a file does not keep apart from text."""
    from types import SimpleNamespace

    from rayfed.storage.text_files import yaml_bytes

    arms = {"ranks": {"adapter": {"kind": "lora", "rank": {2: 0.5, 4: 0.5}}}}
    study: Any = SimpleNamespace(base=SimpleNamespace(name="small"), to_dict=lambda: {"seeds": [1], "arms": arms})
    (tmp_path / "small-1").mkdir()
    (tmp_path / "small-1" / "study.yaml").write_bytes(yaml_bytes(study.to_dict()))
    assert find_study(study, tmp_path) == tmp_path / "small-1"
    arms["ranks"]["adapter"]["rank"] = {2: 0.5, 8: 0.5}
    assert find_study(study, tmp_path) is None


def test_a_data_set_that_is_not_on_the_shelf_is_named(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(claims.SHELF, raising=False)
    file = checkout / "benchmarks" / "claims" / "small.yaml"
    file.write_text(f"{file.read_text()}init: {{from: '${{{claims.SHELF}}}/writers'}}\n")
    assert "--shelf DIR" in str(claims.missing_data(file))
    assert claims.missing_data(file, tmp_path) == f"writers is not on the data shelf {tmp_path}"
    (tmp_path / "writers").mkdir()
    (tmp_path / "writers" / "train.parquet").touch()
    assert claims.missing_data(file, tmp_path) is None


def test_only_what_was_judged_as_it_is_can_be_reproduced(checkout: Path) -> None:
    def reproduce(*names: str) -> list[str]:
        said: list[str] = []
        claims.judge_claims(names, lambda *a: [], out=checkout / "runs", reproduce=True, log=said.append)
        return said

    with pytest.raises(ConfigError, match="small: never judged, so there is no verdict to reproduce"):
        reproduce("small")
    assert reproduce() == ["small: left as it is, never judged"]
    (checkout / "claims.json").write_text(json.dumps({"small": {"digest": "another"}}))
    with pytest.raises(ConfigError, match="small: settings changed since it was judged"):
        reproduce("small")


def test_what_can_be_checked_is_asked_by_a_known_name(checkout: Path) -> None:
    assert isinstance(call("claims", "smal", "--check").exception, ConfigError)
    said = call("claims", "small", "--check")
    assert said.exit_code == 0 and "small: no values are published for it; nothing to check" in said.stdout
