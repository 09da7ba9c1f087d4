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
from rayfed.files import yaml_bytes
from rayfed.folder import Owner, RunFolder, new_folder
from rayfed.metrics import Mean, TensorBoard, ari, lower_is_better, meaning, outcome, scope
from rayfed.report import study_summary, write_report
from rayfed.report.study import judge
from rayfed.runs import runs

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
    assert page.tags.count("svg") == 13  # curves 2, own 1, clients 1, clusters 2, membership 1, worth 2, cost 4
    assert "script" not in page.tags
    final = json.loads((path / "summary.json").read_text())["metrics"]["accuracy/global"]["final"]
    for needed in (f"{final:.4f}", "fedavg", "20 of 20", "digits", "a <note>", "24.0 MB", "torch", "group 2", "unseen"):
        assert needed in page.text, needed
    assert re.search(r"rayfed run \S*config\.yaml", page.text)
    pngs = sorted(os.listdir(path / "plots"))
    assert pngs == ["accuracy.png", "clients.png", "clusters.png", "cost.png", "loss.png"]
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
    assert page.tags.count("figure") == 8  # accuracy, loss, own, clients, clusters, membership, worth, cost
    text = " ".join(page.text.split())
    for needed in (
        "disue beats fedavg in accuracy/global at round 10",
        "holds",
        f"{got['mean']:.4f} ± {got['sd']:.4f}",
        "n=3",
    ):
        assert needed in text, needed
    assert re.search(r"rayfed run \S*study\.yaml", text)


def test_an_unfinished_study(tmp_path):
    path = fake_study(tmp_path, seeds=(0, 1), unfinished=2)
    text = page_of(path).text
    assert "2 of 6 runs are not done" in text
    assert not (path / "summary.json").exists()
    out = study_summary(path)
    assert out["status"] == "incomplete" and out["arms"]["fedavg"]["loss/global"]["n"] == 2
    assert out["arms"]["disue"]["loss/global"] == {**out["arms"]["disue"]["loss/global"], "n": 1, "sd": None}
    assert out["claim"] is None


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
    assert lower_is_better("loss/global_ex") and not lower_is_better("accuracy/global") and not lower_is_better(None)
    assert "examples" in meaning("loss/personal_ex").over and meaning("loss/personal").over.startswith("clients")
    assert meaning("bytes/up").unit == "bytes per round" and meaning("own/thing") is None
    rows = [
        {"round": 1, "a": 1.0, "loss/x": None},
        {"round": 2, "a": 3.0, "loss/x": 2.0},
        {"round": 3, "a": 3.0, "loss/x": 5.0},
    ]
    assert outcome(rows) == {
        "a": {"final": 3.0, "best": 3.0, "best_round": 2}, "loss/x": {"final": 5.0, "best": 2.0, "best_round": 2},
    }  # fmt: skip


def test_tensorboard_reads_our_events_and_a_resume_doubles_nothing(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path / "tb")
    for r in range(1, 8):
        board.write(r, {"round": r, "loss/global": 1.0 / r, "accuracy/global": None, "bytes/up": 5})
    board.close()
    board = TensorBoard(tmp_path / "tb")
    for r in range(6, 10):
        board.write(r, {"loss/global": 10.0 + r})
    board.close()
    assert len(os.listdir(tmp_path / "tb")) == 2
    found = EventAccumulator(str(tmp_path / "tb"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"loss/global", "bytes/up"}
    events = found.Scalars("loss/global")
    assert [e.step for e in events] == list(range(1, 10))
    assert [e.value for e in events] == pytest.approx([1 / r for r in range(1, 6)] + [16, 17, 18, 19])


def test_nothing_here_imports_torch_or_ray(tmp_path):
    code = f"""
import sys
from rayfed.folder import Owner, RunFolder
from rayfed.snapshot import load_tree, save_tree
from rayfed.metrics import TensorBoard
from rayfed.report import write_report
from rayfed.runs import runs
import numpy as np
fill = lambda d: save_tree(d, "s", {{"x": np.ones(2)}})
folder = RunFolder.create({str(tmp_path)!r}, {{"name": "x", "method": "y"}}, owner=Owner.me())
folder.commit(1, {{"loss/global": 1.0}}, [{{"client": 0, "accuracy": 0.5}}], fill)
load_tree(folder.rewind()[1], "s")
folder.finish("done", {{}})
TensorBoard(folder.path / "tensorboard").write(1, {{"a": 1.0}})
write_report(folder.path)
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
