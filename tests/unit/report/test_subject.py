"""Runs of one folder or of several: which are one arm, and which client was in which cluster."""

from __future__ import annotations

import os

import pytest

from rayfed.report import write_comparison
from rayfed.report.settings import differing
from rayfed.report.study import differences
from rayfed.report.subject import load, load_comparison, read_run
from rayfed.storage.run_folder import RunFolder
from tests.unit.report.folders import CONFIG, ME, Page, make_run, make_study, page_of


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


def test_runs_that_differ_in_their_seed_are_one_arm(several):
    subject = load_comparison(several)
    assert {arm: [r.seed for r in runs] for arm, runs in subject.arms.items()} == {"fedavg": [0, 1], "ifca": [0, 1]}
    assert differing([runs[0].config for runs in subject.arms.values()]) == {
        "rounds": ["3", "2"],
        "method.name": ["fedavg", "ifca"],
    }
    found = differences(subject)["ifca"]
    assert found["accuracy/global"]["differences"] == pytest.approx({"0": 0.25, "1": 0.35})
    assert found["accuracy/global"]["mean_difference"] == pytest.approx(0.3)
    assert found["loss/global"]["mean_difference"] == pytest.approx(0.3)  # in the direction of improvement
    twice = load_comparison([several[0], several[0]])
    assert len(twice.arms) == 2 and twice.planned_runs == 2


def test_a_study_next_to_a_run(tmp_path, undrawn):
    path = make_study(tmp_path, seeds=(0, 1))
    alone = make_run(RunFolder.create(tmp_path, {**CONFIG, "seed": 0}, owner=ME), 20, 2.0, 5)
    subject = load_comparison([path, alone])
    assert list(subject.arms) == ["compare/fedavg", "compare/ifca", "compare/disue", "toy"]
    assert load(path).kind == "study" and subject.planned_runs == 7
    text = Page(write_comparison([path, alone], tmp_path / "c.html").read_text()).text
    assert f"rayfed run {path}/study.yaml" in text and "compare/disue: config.yaml" in text
