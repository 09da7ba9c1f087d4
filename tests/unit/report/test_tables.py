"""Tables for papers: worked out here from values that are given."""

from __future__ import annotations

import csv
import io
import math
import statistics

import pytest

from rayfed.report.subject import RunRecord, Subject
from rayfed.report.tables import Cell, ResultTable, caution, result_table
from tests.configs import refusal

VALUES = {"fed_avg": [0.5, 0.7], "b|c": [0.9, 0.7]}


def subject(values: dict[str, list[float]]) -> Subject:
    from pathlib import Path

    arms = {
        arm: [
            RunRecord(
                Path("x"),
                arm,
                seed,
                {},
                {"status": "done"},
                "done",
                [{"round": 1, "accuracy/global": v, "loss/global": 1 - v}],
            )
            for seed, v in enumerate(found)
        ]
        for arm, found in values.items()
    }
    return Subject("study", [Path("x")], "x", {}, arms, sum(map(len, values.values())))


@pytest.fixture
def table() -> ResultTable:
    return result_table(subject(VALUES))


def test_means_deviations_and_intervals(table: ResultTable) -> None:
    cell = table.cells["fed_avg", "accuracy/global"]
    sd = statistics.stdev([0.5, 0.7])
    assert cell[:2] == (pytest.approx(0.6), pytest.approx(sd)) and cell.n == 2
    assert cell.ci95 == pytest.approx(12.7062 * sd / math.sqrt(2), rel=1e-4)  # Student's t with one degree of freedom
    assert table.best("accuracy/global") == table.best("loss/global") == ["b|c"]
    assert result_table(subject({"a": [0.5]})).best("accuracy/global") == []


def test_markdown(table: ResultTable) -> None:
    head, rule, first, second, _, note, *_ = table.to_markdown().splitlines()
    assert head == "| arm | accuracy/global | loss/global | seeds |" and rule == "| --- | ---: | ---: | ---: |"
    assert first == "| fed_avg | 0.6000 ± 0.1414 | 0.4000 ± 0.1414 | 2 |"
    assert second == "| b\\|c | **0.8000** ± 0.1414 | **0.2000** ± 0.1414 | 2 |"
    assert "Caution: 2 seeds only" in note and str(table) == table.to_markdown()


def test_latex(table: ResultTable) -> None:
    lines = table.to_latex().splitlines()
    assert lines[0].startswith("% Final values") and lines[1] == r"\begin{tabular}{lrrr}"
    assert r"fed\_avg & 0.6000 $\pm$ 0.1414 & 0.4000 $\pm$ 0.1414 & 2 \\" in lines
    assert r"b|c & \textbf{0.8000} $\pm$ 0.1414 & \textbf{0.2000} $\pm$ 0.1414 & 2 \\" in lines
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]


def test_csv_and_arrow_have_all_digits(table: ResultTable) -> None:
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(rows) == 4 and float(rows[0]["sd"]) == statistics.stdev([0.5, 0.7])
    assert table.to_arrow().column_names == ["arm", "metric", "mean", "sd", "ci95", "n"]
    assert table.to_arrow()["n"].to_pylist() == [2] * 4
    one = result_table(subject({"a": [0.5]}))
    assert one.to_arrow()["sd"].to_pylist() == [None, None]


def test_a_value_that_is_missing(table: ResultTable) -> None:
    cells = {k: v for k, v in table.cells.items() if k != ("fed_avg", "loss/global")}
    made = ResultTable(table.metrics, table.arms, cells, table.seeds)
    assert "| fed_avg | 0.6000 ± 0.1414 | – | 2 |" in made.to_markdown() and "--" in made.to_latex()
    assert "<td>–</td>" in made._repr_html_()


def test_columns_are_chosen_and_wrong_ones_refused() -> None:
    assert result_table(subject(VALUES), ["loss/global"]).metrics == ("loss/global",)
    assert refusal(result_table, subject(VALUES), ["los/global"]) == (
        "metric 'los/global' was not measured (did you mean 'loss/global'?); there is accuracy/global, loss/global"
    )
    assert "(did you mean 'latex'?), allowed: md, latex, csv" in refusal(result_table(subject(VALUES)).text, "latx")


@pytest.mark.parametrize(
    ("seeds", "cautious"),
    [({"a": 4, "b": 9}, True), ({"a": 5, "b": 5}, False), ({"a": 1}, False), ({"a": 1, "b": 0}, True), ({}, False)],
)
def test_a_caution_below_five_seeds(seeds: dict[str, int], cautious: bool) -> None:
    assert bool(caution(seeds)) is cautious


def test_names_are_escaped() -> None:
    made = ResultTable(("a_b",), ("<x> & 50%",), {("<x> & 50%", "a_b"): Cell(1.0, None, None, 1)}, {"<x> & 50%": 1})
    assert (
        "&lt;x&gt; &amp; 50%" in made._repr_html_() and r"<x> \& 50\%" in made.to_latex() and r"a\_b" in made.to_latex()
    )
