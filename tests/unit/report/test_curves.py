"""Lines by round and by what was spent."""

from __future__ import annotations

import pytest

from rayfed.report.curves import Panel, backdoor, band_note, by_expense, cost, scope_curves
from rayfed.report.subject import load, load_comparison
from tests.unit.report.folders import painted


def test_a_line_is_the_mean_over_seeds_in_a_band():
    curves = [[(1, 1, 0.2), (2, 2, 0.4)], [(1, 1, 0.4), (2, 2, float("nan")), (3, 3, 1.0)]]
    axis = painted(Panel("t", "round", "accuracy", [({"color": "#000000"}, curves)]).paint)
    (line,) = axis.lines
    assert line.get_xydata().tolist() == [[1, pytest.approx(0.3)], [2, 0.4], [3, 1.0]]
    (band,) = axis.collections
    assert band.get_paths()[0].get_extents().ymin == 0.2


def test_a_run_has_scopes_as_lines_and_a_comparison_arms(several):
    (picture,) = scope_curves(load(several[0]))
    assert list(picture.key) == ["global"] and len(picture.panels) == 2 and picture.note == ""
    accuracy, loss = scope_curves(load_comparison(several))
    assert list(accuracy.key) == list(loss.key) == ["fedavg", "ifca"] and "Band" in accuracy.note
    assert len(painted(accuracy.panels[0]).lines) == 2 and band_note(load(several[0])) == ""


def test_what_was_spent_is_cumulative(several):
    picture = by_expense(load(several[0]))  # 3 + 1 MB a round, no times
    assert picture is not None and len(picture.panels) == 1
    (line,) = painted(picture.panels[0]).lines
    assert line.get_xdata().tolist() == pytest.approx([4.0, 8.0, 12.0]) and line.get_ydata().tolist() == [0.1, 0.2, 0.5]
    spent = cost(load(several[0]))
    assert spent is not None and [painted(p).get_title() for p in spent.panels] == [
        "sent by clients", "sent to clients", "both directions, since the start",
    ]  # fmt: skip
    assert painted(spent.panels[2]).lines[0].get_ydata().tolist() == pytest.approx([4.0, 8.0, 12.0])


def test_a_backdoors_success_has_a_dot_per_run(several):
    assert backdoor(load_comparison(several)) is None
    subject = load_comparison(several)
    for i, run in enumerate(subject.runs):
        run.rows[-1].update({"accuracy/backdoor": 0.1 * i})
    picture = backdoor(subject)
    assert picture is not None and list(picture.key) == ["fedavg", "ifca"]
    dots = [c.get_offsets().tolist() for c in painted(picture.panels[0]).collections]
    assert dots == [[[0.0, 0.5], [0.1, 0.6]], [[0.2, 0.75], [pytest.approx(0.3), 0.95]]]


@pytest.mark.parametrize("metric", ["privacy/epsilon", "privacy/epsilon_examples"])
def test_accuracy_against_epsilon_is_a_picture(several, metric):
    subject = load_comparison(several)
    for run in subject.runs:
        for row in run.rows:
            row[metric] = 0.5 * row["round"]
    picture = by_expense(subject)
    assert picture is not None and len(picture.panels) == 2
    axis = painted(picture.panels[1])
    assert "epsilon" in axis.get_xlabel() and len(axis.lines) == 2
    assert axis.lines[0].get_xdata().tolist() == [
        0.5 * r["round"] for r in subject.runs[0].rows if "accuracy/global" in r
    ]
