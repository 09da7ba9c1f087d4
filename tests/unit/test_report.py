"""Reports from run folders with made-up rows; metrics, their names and the TensorBoard sink; the list of runs."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayfed.errors import ConfigError
from rayfed.metrics import Mean, ari, lower_is_better, meaning, outcome, scope
from rayfed.report import study_summary, write_comparison, write_report
from rayfed.report.data import differing, holdings, load, load_comparison, read_run, worst_decile
from rayfed.report.page import number
from rayfed.report.plots import Picture
from rayfed.report.study import differences, judge
from rayfed.storage.atomic import yaml_bytes
from rayfed.storage.listing import runs
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder, new_folder

ME = Owner.me()
CONFIG = {
    "name": "toy",
    "seed": 3,
    "rounds": 20,
    "task": {"data": {"name": "digits"}, "model": {"name": "mlp"}},
    "federation": {"clients": 40},
    "method": {"name": "fedavg"},
    "resources": {"executor": "loop"},
    "storage": {"path": "runs", "snapshot_every": 5, "keep": 2},
}


def fake_run(folder: RunFolder, rounds: int, speed: float, seed: int, finish: bool = True) -> Path:
    rng = np.random.default_rng(seed)
    for r in range(1, rounds + 1):
        row = {"bytes/up": 1_200_000 + r, "bytes/down": 2.4e6, "ray/bytes": 9e6, "time/round": 0.4 + 0.1 * rng.random()}
        clients = None
        if r % 5 == 0:
            accuracy = 0.95 - 0.75 * math.exp(-speed * r / 10) + 0.01 * rng.standard_normal()
            for i, s in enumerate(("global", "personal", "cluster", "local", "unseen")):
                row |= {f"accuracy/{s}": accuracy + 0.02 * (i - 2), f"accuracy/{s}_ex": accuracy}
                row |= {f"loss/{s}": 2.3 * math.exp(-speed * r / 12) + 0.05 * i, f"loss/{s}_ex": 1.0}
            row |= {"clusters/ari": min(1.0, speed * r / 12), "clusters/count": 3, "method/own": 0.5}
            spread = np.clip(rng.normal(accuracy, 0.08, 40), 0, 1)
            clients = [
                {
                    "client": c,
                    "group": c % 3,
                    "unseen": c >= 36,
                    "accuracy": a if c else None,
                    "loss": 1 - a,
                    "seconds": None,
                }
                for c, a in enumerate(spread.tolist())
            ]
        folder.commit(r, row, clients, None)
    folder.state(status="running", round=rounds, rounds=rounds)
    if finish:
        folder.finish("done", {"wall_s": 12.5, "notes": ["a <note>"]})
    return folder.path


def fake_study(tmp_path, seeds=(0, 1, 2), claim=None, unfinished=0):
    arms = {"fedavg": 0.6, "ifca": 0.9, "disue": 1.3}
    study = {**CONFIG, "name": "compare", "seeds": list(seeds), "arms": {a: {"method": {"name": a}} for a in arms}}
    study["claim"] = claim
    path = new_folder(tmp_path, "compare", {"study.yaml": yaml_bytes(study)})
    total = len(seeds) * len(arms)
    for seed in seeds:
        for arm, speed in arms.items():
            total -= 1
            config = {**CONFIG, "method": {"name": arm}, "seed": seed}
            folder = RunFolder.create(path / arm / f"seed-{seed}", config, owner=ME, exact=True)
            fake_run(folder, 20, speed, 10 * seed + len(arm), finish=total >= unfinished)
    return path


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their drawings, which take most of the time."""
    monkeypatch.setattr(Picture, "svgs", lambda self: [])
    monkeypatch.setattr(Picture, "png", lambda self: b"")


class Page(HTMLParser):
    """Well-formed enough for a browser, and what is in it."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text, self.ids = [], [], "", []
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id"]
        for k, v in attrs:
            inside = v is not None and v.startswith(("#", "data:image/png;base64,"))
            assert k not in ("src", "onclick") and (k not in ("href", "xlink:href") or inside), (tag, k, v)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(path):
    html = write_report(path)
    assert html == path / "report.html"
    text = html.read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    for reference in re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text):
        assert reference in page.ids
    return page


def test_report_of_a_run(tmp_path):
    path = fake_run(RunFolder.create(tmp_path, CONFIG, owner=ME), 20, 1.0, 0)
    page = page_of(path)
    assert page.tags.count("svg") == 13  # curves 2, own 1, clients 1, clusters 2, partition 1, worth 2, cost 4
    assert "script" not in page.tags
    final = json.loads((path / "summary.json").read_text())["metrics"]["accuracy/global"]["final"]
    for needed in (f"{final:.4f}", "fedavg", "20 of 20", "digits", "a <note>", "24.0 MB", "torch", "group 2", "unseen"):
        assert needed in page.text, needed
    assert re.search(r"rayfed run \S*config\.yaml", page.text)
    pngs = sorted(os.listdir(path / "plots"))
    assert pngs == [f"{n}.png" for n in ("clients", "clusters", "cost", "curves", "others", "partition", "worth")]
    assert all((path / "plots" / p).read_bytes().startswith(b"\x89PNG") for p in pngs)


def test_report_of_a_run_that_has_hardly_begun(tmp_path):
    folder = RunFolder.create(tmp_path, {"name": "x<y", "method": "fedavg"}, owner=ME)
    assert "No round has been written yet" in page_of(folder.path).text
    folder.commit(1, {"loss/global": float("nan"), "odd": 1e-9})
    text = page_of(folder.path).text
    assert "1.000e-09" in text and "running" not in text and "starting" in text


def test_report_needs_a_run_or_a_study(tmp_path):
    with pytest.raises(ConfigError, match="neither a run"):
        write_report(tmp_path)


def test_report_and_summary_of_a_study(tmp_path):
    claim = {"metric": "accuracy/global", "at": 10, "better": "disue", "than": "fedavg"}
    path = fake_study(tmp_path, claim=claim)
    out = study_summary(path)
    assert json.loads((path / "summary.json").read_text()) == out
    assert out["status"] == "done" and list(out["arms"]) == ["fedavg", "ifca", "disue"]
    table = pq.read_table(path / "results.parquet")
    assert table.column_names[:3] == ["arm", "seed", "round"] and table.num_rows == 3 * 3 * 20
    rows = table.to_pylist()
    values = [r["accuracy/global"] for r in rows if r["arm"] == "ifca" and r["round"] == 20]
    got = out["arms"]["ifca"]["accuracy/global"]
    assert got["n"] == 3
    assert got["mean"] == pytest.approx(np.mean(values)) and got["sd"] == pytest.approx(np.std(values, ddof=1))
    at = {(r["arm"], r["seed"]): r["accuracy/global"] for r in rows if r["round"] == 10}
    pairs = [at["disue", s] - at["fedavg", s] for s in (0, 1, 2)]
    from scipy import stats

    low, high = stats.ttest_1samp(pairs, 0.0).confidence_interval(0.95)
    assert out["claim"]["mean_difference"] == pytest.approx(np.mean(pairs))
    assert out["claim"]["ci95"] == pytest.approx([low, high])
    assert out["claim"]["verdict"] == "holds" and out["claim"]["n"] == 3

    page = page_of(path)
    assert page.tags.count("figure") == 8  # accuracy, loss, own, clients, clusters, partition, worth, cost
    text = " ".join(page.text.split())
    for needed in (
        "disue beats fedavg in accuracy/global at round 10",
        "holds",
        f"{got['mean']:.4f} ± {got['sd']:.4f}",
    ):
        assert needed in text, needed
    assert re.search(r"rayfed run \S*study\.yaml", text)


def test_an_unfinished_study(tmp_path, undrawn):
    path = fake_study(tmp_path, seeds=(0, 1), unfinished=2)
    text = page_of(path).text
    assert "2 of 6 runs are not done" in text
    assert not (path / "summary.json").exists()
    out = study_summary(path)
    assert out["status"] == "incomplete" and out["arms"]["fedavg"]["loss/global"]["n"] == 2
    assert out["arms"]["disue"]["loss/global"] == {**out["arms"]["disue"]["loss/global"], "n": 1, "sd": None}
    assert out["claim"] is None


def test_a_study_that_has_not_begun(tmp_path, undrawn):
    study = {**CONFIG, "seeds": [0], "arms": {"a": {}, "b": {}}}
    study["claim"] = {"metric": "accuracy/global", "at": 5, "better": "a", "than": "b"}
    path = new_folder(tmp_path, "compare", {"study.yaml": yaml_bytes(study)})
    text = " ".join(page_of(path).text.split())
    assert "0 of 2" in text and "undecided: it needs two seeds or more with both values; 0 found" in text


def test_several_claims_on_one_page(tmp_path, undrawn):
    claims = [
        {"metric": "accuracy/global", "at": 10, "better": "disue", "than": "fedavg", "about": "Experts <pay>"},
        {"metric": "accuracy/global", "at": 10, "better": "fedavg", "than": "disue", "margin": 0.01},
        {"metric": "loss/global", "at": 10, "better": "fedavg", "than": "disue", "margin": -9.0},
    ]
    path = fake_study(tmp_path, claim=claims)
    out = study_summary(path)
    assert [c["verdict"] for c in out["claim"]] == ["holds", "does not hold here", "holds"]
    text = " ".join(page_of(path).text.split())
    first, second, third = out["claim"]
    low, high = (number(x, sign=True) for x in first["ci95"])
    assert f"Experts <pay>Claim: disue beats fedavg in accuracy/global at round 10 — holds. Mean improvement "\
        f"{number(first['mean_difference'], sign=True)}, 95 % interval {low} to {high}, 3 seeds, paired." in text  # fmt: skip
    assert "fedavg beats disue in accuracy/global at round 10 by more than 0.0100 — does not hold here" in text
    assert "in loss/global at round 10, fedavg is worse than disue by at most 9.0000 — holds" in text
    assert third["mean_difference"] < 0 and second["n"] == 3


def test_worst_decile_by_hand():
    values = [0.5, 0.1, 0.9, 0.3, *[0.8] * 16]  # 20 clients: the worst two
    assert worst_decile(values) == pytest.approx(0.2)
    assert worst_decile(values, lower_is_better=True) == pytest.approx(0.85)
    assert worst_decile([0.4]) == 0.4
    assert worst_decile([0.7, *[1.0] * 9, 0.3]) == pytest.approx(0.5)  # 11 clients: a tenth is more than one


def test_membership_by_hand(tmp_path):
    folder = RunFolder.create(tmp_path, CONFIG, owner=ME)
    clusters = {2: {0: 1, 1: 0, 2: 0, 3: None}, 4: {0: 1, 1: 1, 2: 0}}  # round -> client -> cluster
    groups = {0: 1, 1: 0, 2: 0, 3: 1}
    for r in range(1, 5):
        if r not in clusters:
            folder.commit(r, {"time/round": 1.0})
            continue
        clients = [
            {"client": c, "group": groups[c], "unseen": False, "cluster": k, "accuracy": c / 4}
            for c, k in clusters[r].items()
        ]
        clients.append({"client": 9, "group": 0, "unseen": True, "cluster": 0, "accuracy": 0.5})
        folder.commit(r, {"clusters/count": 2, "clusters/ari": 0.5, "accuracy/personal": 0.5}, clients)
    found = read_run(folder.path).membership
    assert found is not None and found.rounds == [2, 4] and not found.thinned
    assert found.group.tolist() == [0, 0, 1, 1]  # clients 2, 1, 3, 0: by group, then by their last cluster
    assert found.cluster.tolist() == [[0, 0], [0, 1], [-1, -1], [1, 1]]
    page_of(folder.path)
    assert "membership.png" in os.listdir(folder.path / "plots")


def test_holdings_are_those_of_the_split(tmp_path):
    from rayfed import partition
    from rayfed.config.schema import Config

    content = {
        "seed": 4, "rounds": 1, "task": {"data": "digits", "model": {"name": "mlp", "hidden": [8]}},
        "federation": {"clients": 12, "partition": {"kind": "dirichlet", "alpha": 0.3},
                       "groups": {"kind": "rotation", "count": 2}, "holdout": {"kind": "clients", "fraction": 0.25}},
        "method": "fedavg",
    }  # fmt: skip
    folder = RunFolder.create(tmp_path, content, owner=ME)
    made = partition.build(Config.from_dict(content))
    sizes = made.class_counts.sum(1)
    folder.commit(1, {"accuracy/personal": 0.5}, [{"client": 3, "examples": int(sizes[3]), "accuracy": 0.5}])
    found = holdings(read_run(folder.path))
    assert not isinstance(found, str), found
    assert (found.counts == made.class_counts).all() and (found.group == made.group).all()
    assert found.unseen.tolist() == [False] * made.population + [True] * (12 - made.population)
    text = page_of(folder.path).text
    assert f"12 clients hold {sizes.sum():,} training examples: {sizes.min():,} to {sizes.max():,}" in text
    other = RunFolder.create(tmp_path, content, owner=ME)
    other.commit(1, {}, [{"client": 3, "examples": int(sizes[3]) + 1, "accuracy": 0.5}])
    assert holdings(read_run(other.path)) == "the data is not what it was when the run was made"
    assert "the data is not what it was" in page_of(other.path).text
    far = RunFolder.create(tmp_path, {**content, "task": {"data": "parquet:nowhere", "model": "mlp"}}, owner=ME)
    assert "nowhere, is not here" in str(holdings(read_run(far.path)))


# -- several runs ------------------------------------------------------------------------------------------------------


def small(folder, values, finish=True):
    for r, value in enumerate(values, 1):
        row = {"accuracy/global": value, "loss/global": 1 - value, "bytes/up": 1e6 * len(values), "bytes/down": 1e6}
        folder.commit(r, row)
    if finish:
        folder.finish("done", {"wall_s": 2.0, "notes": ["to repeat: --set resources.cohort=7"]})
    return folder.path


@pytest.fixture
def several(tmp_path):
    """Two seeds of one experiment, then another method with the first seed and with one that only it has."""
    made = []
    for method, seed, last in (("fedavg", 0, 0.5), ("fedavg", 1, 0.6), ("ifca", 0, 0.75), ("ifca", 1, 0.95)):
        config = {**CONFIG, "seed": seed, "method": {"name": method}, "rounds": 2 if method == "ifca" else 3}
        values = [0.1, last] if method == "ifca" else [0.1, 0.2, last]
        made.append(small(RunFolder.create(tmp_path, config, owner=ME), values))
    return made


def test_runs_that_differ_in_their_seed_are_one_arm(several):
    subject = load_comparison(several)
    assert {arm: [r.seed for r in runs] for arm, runs in subject.arms.items()} == {"fedavg": [0, 1], "ifca": [0, 1]}
    assert differing(subject) == {"rounds": ["3", "2"], "method.name": ["fedavg", "ifca"]}
    found = differences(subject)["ifca"]
    assert found["accuracy/global"]["differences"] == pytest.approx({"0": 0.25, "1": 0.35})
    assert found["accuracy/global"]["mean_difference"] == pytest.approx(0.3)
    assert found["loss/global"]["mean_difference"] == pytest.approx(0.3)  # in the direction of improvement
    twice = load_comparison([several[0], several[0]])
    assert len(twice.arms) == 2 and twice.planned == 2


def test_differences_need_the_same_split(tmp_path, several, undrawn):
    config = {**CONFIG, "seed": 0, "method": {"name": "other"}, "federation": {"clients": 41}}
    apart = small(RunFolder.create(tmp_path, config, owner=ME), [0.9])
    cut = small(RunFolder.create(tmp_path, {**CONFIG, "method": {"name": "cut"}}, owner=ME), [0.9], finish=False)
    subject = load_comparison([*several, apart, cut])
    assert list(subject.arms) == ["fedavg", "ifca", "other", "cut"] and list(differences(subject)) == ["ifca"]
    text = " ".join(Page(write_comparison([*several, apart, cut], tmp_path / "c.html").read_text()).text.split())
    assert "other, cut: nothing to compare: no seed that is done on the same split in both." in text
    assert "1 of 6 runs are not done" in text


def test_the_page_that_compares(tmp_path, several, monkeypatch):
    from scipy import stats

    monkeypatch.chdir(tmp_path)
    page = write_comparison(several[:3])
    assert page.name == f"compare-{'-'.join(p.name[-4:] for p in several[:3])}.html" and page.is_file()
    assert sorted(p.name for p in several[0].iterdir() if p.name in ("plots", "report.html")) == []
    page = write_comparison(several, "mine.html")
    text = page.read_text()
    read = Page(text)
    assert (
        len(read.ids) == len(set(read.ids)) and "script" not in read.tags and read.tags.count("figure") == 5
    )  # accuracy, loss, partition, worth, cost
    said = " ".join(read.text.split())
    low, high = stats.ttest_1samp([0.25, 0.35], 0.0).confidence_interval(0.95)
    assert "Difference from fedavg" in said
    assert f"+0.3000 {number(low, sign=True)} to {number(high, sign=True)}" in said
    assert f"−0.3000 {number(-high, sign=True)} to {number(-low, sign=True)}" in said  # loss: raw, less is better
    assert "0.55000.0707" not in said and "0.5500 ± 0.0707" in said and "0.8500 ± 0.1414" in said
    for path in several:
        assert f"rayfed run {path.name}/config.yaml --set resources.cohort=7" in said
    assert f"rayfed report {' '.join(p.name for p in several)}" in said
    assert "method.name" in said and re.search(
        r"9\.0 MB.*4\.0 MB.*0\.50 ×", said
    )  # up: 3 x 3 and 2 x 2 MB; 6 of 12 in all


def test_a_sure_difference_is_marked(tmp_path, undrawn):
    made = []
    for method, level in (("fedavg", 0.5), ("ifca", 0.75), ("worse", 0.25)):
        for seed in range(3):
            config = {**CONFIG, "seed": seed, "method": {"name": method}}
            made.append(
                small(RunFolder.create(tmp_path, config, owner=ME), [level + 0.001 * seed * (method != "ifca")])
            )
    said = Page(write_comparison(made, tmp_path / "c.html").read_text()).text
    assert "▲ +0.2490" in said and "▲ −0.2490" in said and "▼ −0.2500" in said and "▼ +0.2500" in said


def test_a_study_beside_a_run(tmp_path, undrawn):
    path = fake_study(tmp_path, seeds=(0, 1))
    alone = fake_run(RunFolder.create(tmp_path, {**CONFIG, "seed": 0}, owner=ME), 20, 2.0, 5)
    subject = load_comparison([path, alone])
    assert list(subject.arms) == ["compare/fedavg", "compare/ifca", "compare/disue", "toy"]
    assert load(path).kind == "study" and subject.planned == 7
    text = Page(write_comparison([path, alone], tmp_path / "c.html").read_text()).text
    assert f"rayfed run {path}/study.yaml" in text and "compare/disue: config.yaml" in text


def test_the_command(tmp_path, several, undrawn, monkeypatch):
    from typer.testing import CliRunner

    from rayfed.cli import app

    monkeypatch.chdir(tmp_path)
    names = [p.name for p in several]
    one = CliRunner().invoke(app, ["report", names[0]])
    assert (one.exit_code, one.output) == (0, f"{names[0]}/report.html\n")
    two = CliRunner().invoke(app, ["report", names[0], names[2], "--out", "two.html"])
    assert (two.exit_code, two.output) == (0, "two.html\n")
    assert "Difference from fedavg" in Page((tmp_path / "two.html").read_text()).text
    wrong = CliRunner().invoke(app, ["report", names[0], "--out", "two.html"])
    assert isinstance(wrong.exception, ConfigError) and "--out two.html" in str(wrong.exception)


def test_a_comparison_that_cannot_be_written(tmp_path, several):
    with pytest.raises(ConfigError, match="neither a run"):
        write_comparison([several[0], tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="is a folder"):
        write_comparison(several, tmp_path)
    with pytest.raises(ConfigError, match="cannot write"):
        write_comparison(several, tmp_path / "no" / "such.html")


class Fake:
    def __init__(self, seed, value):
        self.seed, self.summary, self.value = seed, {"status": "done"}, value

    def series(self, metric):
        return [(5, self.value)]

    def final(self, metric):
        return self.value


@pytest.mark.parametrize(
    ("better", "than", "metric", "margin", "verdict"),
    [
        ([0.9, 0.91, 0.92], [0.8, 0.8, 0.81], "accuracy/global", 0.0, "holds"),
        ([0.9, 0.91, 0.92], [0.8, 0.8, 0.81], "accuracy/global", 0.2, "does not hold here"),
        ([0.9, 0.7, 0.92], [0.8, 0.8, 0.81], "accuracy/global", 0.0, "undecided"),
        ([0.9, 0.91, 0.92], [0.8, 0.8, 0.81], "loss/global", 0.0, "does not hold here"),
        ([0.5, 0.5], [0.5, 0.5], "accuracy/global", 0.0, "does not hold here"),
        ([0.9], [0.8], "accuracy/global", 0.0, "undecided"),
        ([0.9, 0.9], [], "accuracy/global", 0.0, "undecided"),
        ([0.9, math.nan], [0.8, 0.8], "accuracy/global", 0.0, "undecided"),
        ([0.79, 0.80, 0.80], [0.8, 0.8, 0.81], "accuracy/global", -0.1, "holds"),
        ([0.79, 0.80, 0.80], [0.8, 0.8, 0.81], "accuracy/global", -0.02, "undecided"),
        ([0.70, 0.71, 0.71], [0.8, 0.8, 0.81], "accuracy/global", -0.05, "does not hold here"),
        ([0.5, 0.5], [0.75, 0.75], "accuracy/global", -0.25, "holds"),  # the margin itself is not worse than the margin
    ],
)
def test_verdicts(better, than, metric, margin, verdict):
    arms = {"a": [Fake(s, v) for s, v in enumerate(better)], "b": [Fake(s, v) for s, v in enumerate(than)]}
    claim = {"metric": metric, "at": 5, "better": "a", "than": "b", "margin": margin}
    assert judge(claim, arms)["verdict"] == verdict
    assert judge({**claim, "at": None}, arms)["verdict"] == verdict
    assert judge({**claim, "at": 6}, arms) == {**judge({**claim, "at": 6}, arms), "n": 0, "verdict": "undecided"}


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_scope_by_hand():
    sums = {
        7: {"n": 10, "loss": 5.0, "accuracy": 8.0},
        9: {"n": 30, "loss": 60.0, "accuracy": 6.0},
        11: {"n": 0, "loss": 0.0, "accuracy": 0.0},
    }
    assert scope("personal", sums) == {
        "loss/personal": 1.25, "loss/personal_ex": 65 / 40, "accuracy/personal": 0.5, "accuracy/personal_ex": 14 / 40,
    }  # fmt: skip
    assert scope("unseen", {}) == scope("unseen", {1: {"n": 0, "loss": 0.0}}) == {}


def test_scope_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    sums = {
        c: {"n": float(rng.integers(1, 9)), "loss": float(rng.random() * 10.0 ** rng.integers(-8, 8))}
        for c in range(99)
    }
    turned = dict(sorted(sums.items(), key=lambda kv: kv[1]["loss"]))
    assert scope("x", sums) == scope("x", turned)


def test_means_add_up():
    parts = [Mean(3.0, 2.0), Mean(), Mean(5.0, 6.0)]
    assert (parts[0] + parts[1] + parts[2]).value == Mean.of(parts).value == 1.0
    assert Mean().value is None


def test_names():
    assert ari([0, 0, 1, 1], [5, 5, 2, 2]) == 1.0
    assert (
        lower_is_better("loss/global_ex")
        and lower_is_better("lora/gap")
        and not lower_is_better("accuracy/global")
        and not lower_is_better(None)
    )
    assert "examples" in meaning("loss/personal_ex").over and meaning("loss/personal").over.startswith("clients")
    assert meaning("bytes/up").unit == "bytes per round" and meaning("own/thing") is None
    assert meaning("own/thing", {"own/thing": ("how far it is", "m")}) == ("how far it is", "m", "-")
    assert meaning("loss/global", {"loss/global": ("another", "m")}) != ("another", "m", "-")
    rows = [
        {"round": 1, "a": 1.0, "loss/x": None},
        {"round": 2, "a": 3.0, "loss/x": 2.0},
        {"round": 3, "a": 3.0, "loss/x": 5.0},
    ]
    assert outcome(rows) == {
        "a": {"final": 3.0, "best": 3.0, "best_round": 2}, "loss/x": {"final": 5.0, "best": 2.0, "best_round": 2},
    }  # fmt: skip


def test_nothing_here_imports_torch_or_ray(tmp_path):
    code = f"""
import sys
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.snapshots import load_tree, save_tree
from rayfed.track import Sinks
from rayfed.report import write_comparison, write_report
from rayfed.storage.listing import runs
import numpy as np
fill = lambda d: save_tree(d, "s", {{"x": np.ones(2)}})
folder = RunFolder.create({str(tmp_path)!r}, {{"name": "x", "method": "y"}}, owner=Owner.me())
folder.commit(1, {{"loss/global": 1.0}}, [{{"client": 0, "accuracy": 0.5}}], fill)
load_tree(folder.rewind()[1], "s")
folder.finish("done", {{}})
sinks = Sinks(["tensorboard"], print)
sinks.open("run", {{}}, folder.path)
sinks.row(1, {{"a": 1.0}})
assert not sinks.notes
write_report(folder.path)
write_comparison([folder.path, folder.path], {str(tmp_path / "c.html")!r})
runs({str(tmp_path)!r})
print([m for m in ("torch", "ray", "tensorflow") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# -- the list of runs --------------------------------------------------------------------------------------------------


def test_runs_lists_what_is_there(tmp_path):
    assert runs(tmp_path) == []
    done, cut, live = (RunFolder.create(tmp_path, {**CONFIG, "name": n}, owner=ME) for n in ("done", "cut", "live"))
    for folder in (done, cut, live):
        for r in range(1, 6):
            folder.commit(r, {"loss/global": 1.0})
        folder.state(status="running", round=5, rounds=20)
    done.finish("done", {})
    lock = json.loads((cut.path / "lock.json").read_text())
    lock["owner"]["start"] -= 100
    (cut.path / "lock.json").write_text(json.dumps(lock))
    content = {**CONFIG, "name": "st", "seeds": [0, 1], "arms": {"a": {}, "b": {"rounds": 10}}}
    study = new_folder(tmp_path, "st", {"study.yaml": yaml_bytes(content)})
    RunFolder.create(study / "a" / "seed-0", CONFIG, owner=ME, exact=True).state(status="running", round=4, rounds=20)
    (tmp_path / "other").mkdir()
    found = {r["name"].split("-")[0]: r for r in runs(tmp_path)}
    assert set(found) == {"done", "cut", "live", "st"}
    assert found["done"]["status"] == "done" and (found["done"]["round"], found["done"]["rounds"]) == (5, 20)
    assert found["cut"]["status"] == f"interrupted (resume with: rayfed resume {cut.path})"
    assert found["live"]["status"] == "running" and found["live"]["method"] == "fedavg"
    assert found["st"]["kind"] == "study" and found["st"]["status"] == "running" and found["st"]["method"] == "a, b"
    assert (found["st"]["round"], found["st"]["rounds"]) == (4, 60)
