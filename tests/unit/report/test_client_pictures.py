"""How clients are distributed, and which cluster each is in."""

from __future__ import annotations

import numpy as np
import pytest

from rayfed.report.client_pictures import blocks, client_values, distribution, membership
from rayfed.report.subject import load, read_run
from rayfed.storage.run_folder import RunFolder
from tests.unit.report.folders import CONFIG, ME, make_study, painted


def run_with_clients(tmp_path, n=30, clusters=14):
    folder = RunFolder.create(tmp_path, CONFIG, owner=ME)
    clients = [
        {
            "client": c,
            "group": c % 2,
            "unseen": c >= n - 3,
            "cluster": c % clusters,
            "accuracy": c / n,
            "examples": 1 + 40 * c,
        }
        for c in range(n)
    ]
    folder.commit(1, {"clusters/count": clusters, "accuracy/personal": 0.5}, clients)
    return folder.path


def test_a_distribution_marks_the_worst_tenth(tmp_path):
    subject = load(run_with_clients(tmp_path))
    picture = distribution(subject)
    assert picture is not None and list(picture.key) == ["all clients", "group 0", "group 1", "unseen"]
    steps, sizes = map(painted, picture.panels)
    (diamond,) = [line for line in steps.lines if line.get_marker() == "D"]
    worst = np.mean(sorted(client_values(subject.runs[0], "accuracy"))[:3])  # of 27 clients that take part
    assert diamond.get_xdata().tolist() == [pytest.approx(worst)]
    assert steps.lines[0].get_ydata()[-1] == 1.0 and sizes.get_xscale() == "log"
    assert sum(len(dots.get_offsets()) for dots in sizes.collections) == 30


def test_arms_show_the_worst_tenth_of_every_seed(tmp_path):
    picture = distribution(load(make_study(tmp_path)))
    assert picture is not None and list(picture.key) == ["fedavg", "ifca", "disue"]
    seeds = painted(picture.panels[1])
    assert [len(dots.get_offsets()) for dots in seeds.collections] == [3, 3, 3]
    assert [t.get_text() for t in seeds.get_yticklabels()] == ["fedavg", "ifca", "disue"]


def test_blocks_are_stretches_of_equal_labels():
    assert blocks(np.array([-1, -1, 0, 2, 2])) == [(-1, 0, 2), (0, 2, 3), (2, 3, 5)]


def test_many_clusters_share_colours_and_say_so(tmp_path):
    path = run_with_clients(tmp_path)
    picture = membership(load(path))
    assert (
        picture is not None
        and len(picture.key) == 12
        and "Clusters from 12 on use the same colours again" in picture.note
    )
    axis = painted(picture.panels[0])
    assert axis.images[0].get_array().shape == (27, 1, 4) and read_run(path).membership.cluster.shape == (27, 1)
    assert [t.get_text() for t in axis.get_yticklabels()] == ["group 0", "group 1"]
