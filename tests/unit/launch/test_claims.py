"""Claims: run, judged, written down; what is shipped belongs to the files that are there."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rayfed import cli, methods
from rayfed.errors import ConfigError
from rayfed.launch import claims, claims_page
from rayfed.storage.round_log import read
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
resources: {executor: vmap}
track: []
seeds: [5, 6, 7]
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
    said = call("claims", "--local", "--json")
    assert said.exit_code == 0, said.output
    entry = json.loads((checkout / "claims.json").read_text())["small"]
    assert json.loads(said.stdout) == {"small": entry}
    (study,) = (checkout / "runs" / "claims").iterdir()
    loss = {a: [read(study / a / f"seed-{s}")[2]["loss/global"] for s in (5, 6, 7)] for a in ("plain", "slow")}
    gains = [b - a for a, b in zip(loss["plain"], loss["slow"], strict=True)]
    first, second = entry["results"]
    assert first["mean_difference"] == pytest.approx(statistics.fmean(gains))
    half = 4.302652729911275 * statistics.stdev(gains) / math.sqrt(3)  # t, 97.5 %, two degrees of freedom
    assert first["ci95"] == pytest.approx([statistics.fmean(gains) - half, statistics.fmean(gains) + half])
    assert first["arms"]["slow"] == {
        "mean": pytest.approx(statistics.fmean(loss["slow"])), "sd": pytest.approx(statistics.stdev(loss["slow"])), "n": 3,
    }  # fmt: skip
    assert (first["verdict"], first["method"], first["n"]) == ("holds", None, 3)  # the arms differ in their rate
    assert (second["verdict"], second["method"], second["margin"]) == ("holds", "fedavg", -2)
    rows = [read(study / "slow" / f"seed-{s}") for s in (5, 6, 7)]
    sent = [[r[t][f"bytes/{way}"] for r in rows for t in (1, 2)] for way in ("up", "down")]
    per_mb = [1e6 * r[1]["accuracy/global"] / (r[1]["bytes/up"] + r[1]["bytes/down"]) for r in rows]
    means = dict(zip(("up", "down", "accuracy_per_mb"), map(statistics.fmean, [*sent, per_mb]), strict=True))
    assert entry["cost"]["slow"] == pytest.approx(means) and means["up"] > 0
    page = (checkout / "benchmarks" / "CLAIMS.md").read_text()
    assert f"{statistics.fmean(gains):+.4f}" in page and "Said in full here." in page and "seeds 5 to 7" in page
    assert page.count("*holds*") == 3  # twice in the table, once where the words are explained

    when = (study / "plain" / "seed-5" / "summary.json").stat().st_mtime_ns
    again = call("claims", "small", "--local")  # what is done is not run again
    assert again.exit_code == 0 and "holds" in again.stdout
    assert (study / "plain" / "seed-5" / "summary.json").stat().st_mtime_ns == when
    assert len(list((checkout / "runs" / "claims").iterdir())) == 1

    (checkout / "benchmarks" / "claims" / "small.yaml").write_text(SMALL.replace("rounds: 2", "rounds: 3"))
    claims.write_verdicts({})
    assert "The settings have changed since" in (checkout / "benchmarks" / "CLAIMS.md").read_text()
    (checkout / "benchmarks" / "claims" / "small.yaml").rename(checkout / "benchmarks" / "claims" / "other.yaml")
    claims.write_verdicts({})
    assert claims.shipped_verdicts() == {}


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
        claims.judge_claims(["shelf"], lambda study, out: (out, {}), out=checkout)


def test_wrong_names_and_files_are_refused(checkout: Path) -> None:
    with pytest.raises(ConfigError, match=r"'smal' is unknown \(did you mean 'small'\?\)"):
        claims.claim_files(["smal"])
    (checkout / "benchmarks" / "claims" / "plain.yaml").write_text(SMALL.split("seeds:")[0])
    with pytest.raises(ConfigError, match="a claim is a study"):
        claims.judge_claims([], lambda study, out: (out, {}), out=checkout)
    (checkout / "benchmarks" / "claims").rename(checkout / "elsewhere")
    with pytest.raises(ConfigError, match="from a checkout"):
        claims.claim_files()


def test_methods_shows_its_verdicts(checkout: Path) -> None:
    result = {
        "about": "it is good", "method": "scaffold", "metric": "accuracy/global", "at": 3, "better": "a", "than": "b",
        "margin": 0.0, "n": 8, "mean_difference": 0.125, "ci95": [0.1, 0.15], "verdict": "holds", "arms": {},
    }  # fmt: skip
    (checkout / "claims.json").write_text(json.dumps({"x": {"results": [result]}}))
    shown = call("methods", "scaffold").output
    assert "holds (x)\n      it is good; " in shown and "+0.1250 (95 % +0.1000 to +0.1500, 8 seeds)" in shown
    assert json.loads(call("methods", "scaffold", "--json").output)["claims"][0]["study"] == "x"
    assert "it is good" not in call("methods", "fedavg").output


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
    raw = yaml.safe_load(file.read_text())
    assert raw["name"] == file.stem and len(raw["seeds"]) >= 5 and min(raw["seeds"]) >= 100  # settings: seeds below
    assert claims_page.head_comment(file)[0].endswith(".")
    if claims.SHELF not in file.read_text() and claims.missing_data(file) is None:
        study = claims.read_claim(file)
        assert all(c.about for c in study.claims)


def test_shipped_verdicts_belong_to_the_files_as_they_are() -> None:
    table = claims.shipped_verdicts()
    assert set(table) == {f.stem for f in FILES}
    for file in FILES:
        entry = table[file.stem]
        assert entry["digest"] == claims.settings_digest(file), (
            f"{file.stem} has changed: run `rayfed claims {file.stem}`"
        )
        assert entry["status"] == "done" and all(r["n"] == len(entry["seeds"]) for r in entry["results"])
    known = {f.stem: f for f in FILES}
    assert claims.claims_table(table, known) == (FILES[0].parents[1] / "CLAIMS.md").read_text()


def needs_an_adapter(name: str) -> bool:
    try:
        toy.config(name)
    except ConfigError as e:
        return any(p.startswith("adapter.kind") for p in e.problems)
    return False


def test_every_method_is_judged_by_a_claim() -> None:
    """Baselines that others are held against need none of their own; methods on adapters are not judged yet."""
    judged = {r["method"] for v in claims.shipped_verdicts().values() for r in v["results"]} - {None}
    left = {n for n in set(methods.names()) - judged if not needs_an_adapter(n)}
    assert left <= {"fedavg", "local_only"}


def test_a_study_of_ranks_is_found_again(tmp_path: Path) -> None:
    """Shares of ranks are keyed by numbers, which a file does not keep apart from text."""
    from types import SimpleNamespace

    from rayfed.storage.text_files import yaml_bytes

    arms = {"ranks": {"adapter": {"kind": "lora", "rank": {2: 0.5, 4: 0.5}}}}
    study: Any = SimpleNamespace(base=SimpleNamespace(name="small"), to_dict=lambda: {"seeds": [1], "arms": arms})
    (tmp_path / "small-1").mkdir()
    (tmp_path / "small-1" / "study.yaml").write_bytes(yaml_bytes(study.to_dict()))
    assert claims.find_study(study, tmp_path) == tmp_path / "small-1"
    arms["ranks"]["adapter"]["rank"] = {2: 0.5, 8: 0.5}
    assert claims.find_study(study, tmp_path) is None
