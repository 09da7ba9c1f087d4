"""The Gantt chart and ages of replies, from a run's timeline; accuracy against simulated time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayfed.report import curves, time_pictures
from rayfed.report.subject import load, load_comparison
from rayfed.storage import timeline
from tests.unit.report.folders import painted


def visits(n: int) -> dict[str, torch.Tensor]:
    began = torch.arange(3.0, dtype=torch.float64).repeat(n)
    took = torch.arange(1.0, n + 1, dtype=torch.float64).repeat_interleave(3)
    return {"client": torch.arange(n).repeat_interleave(3), "began": began, "ended": began + took}


def test_a_lane_for_each_client_the_quickest_first(several):
    subject = load(several[0])
    assert time_pictures.gantt(subject) is None and time_pictures.staleness(subject) is None
    timeline.write(several[0], visits(4))
    picture = time_pictures.gantt(load(several[0]))
    assert picture is not None and picture.wide
    axis = painted(picture.panels[0])
    assert len(axis.collections) == 4 and axis.get_xlabel() == "simulated seconds" and axis.get_xlim() == (0, 2)
    lengths = [c.get_paths()[0].get_extents().width for c in axis.collections]
    assert lengths == pytest.approx([1, 2, 3, 4])


def test_of_many_clients_some_are_shown_evenly_by_speed():
    found = {n: np.asarray(x) for n, x in visits(100).items()}
    chosen, end = time_pictures.lanes(found)
    assert len(chosen) == time_pictures.LANES and chosen[0] == 0 and chosen[-1] == 99 and chosen == sorted(chosen)
    assert end == 2


def test_ages_are_shares_an_outline_per_arm(several):
    first, second = (runs[0].path for runs in load_comparison(several).arms.values())
    timeline.write(first, {**visits(2), "stale": torch.tensor([3, 1])})
    timeline.write(second, {**visits(2), "stale": torch.tensor([1, 1, 2])})
    picture = time_pictures.staleness(load_comparison(several))
    assert picture is not None and len(picture.key) == 2
    shares = [p.get_data().values.tolist() for p in painted(picture.panels[0]).patches]
    assert shares == [[0.75, 0.25], [0.25, 0.25, 0.5]]


def test_accuracy_against_simulated_hours(several):
    subject = load(several[0])
    for i, row in enumerate(subject.runs[0].rows):
        row["time/simulated"] = 3600.0 * (i + 1)
    picture = curves.by_expense(subject)
    assert picture is not None
    axis = painted(picture.panels[-1])
    assert axis.get_xlabel() == "simulated hours" and axis.lines[0].get_xdata().tolist() == pytest.approx(
        [1.0, 2.0, 3.0]
    )
    assert curves.time_unit(59) == (1, "seconds") and curves.time_unit(60) == (60, "minutes")
