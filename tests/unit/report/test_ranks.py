"""Rank tests of a comparison, against SciPy's by hand."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from rayfed.report.ranks import note, rank_tests
from rayfed.report.results import rank_table
from rayfed.report.statistics import holm
from rayfed.report.tables import result_table
from tests.unit.report.test_tables import subject

RNG = np.random.default_rng(3)
BASE = RNG.uniform(0.4, 0.6, 8)
VALUES = {
    "first": BASE.tolist(),
    "better": (BASE + RNG.uniform(0.01, 0.1, 8)).tolist(),
    "like": (BASE + RNG.normal(0, 0.05, 8)).tolist(),
}


def test_ranks_and_p_values() -> None:
    from scipy.stats import friedmanchisquare, wilcoxon

    found = {t.metric: t for t in rank_tests(subject(VALUES))}
    assert found.keys() == {"accuracy/global", "loss/global"}
    t = found["accuracy/global"]
    table = np.array([VALUES[a] for a in ("first", "better", "like")])
    ranks = [sum(int((table[:, s] > table[a, s]).sum()) + 1 for s in range(8)) / 8 for a in range(3)]
    assert [*t.ranks.values()] == pytest.approx(ranks) and t.seeds == 8
    assert t.friedman == pytest.approx(friedmanchisquare(*table).pvalue)
    p = [wilcoxon(table[i] - table[0]).pvalue for i in (1, 2)]
    assert [*t.wilcoxon.values()] == pytest.approx(p) and p[0] == 2 / 2**8  # all eight differences have one sign
    assert [*t.holm.values()] == pytest.approx(holm(p)) and t.holm["better"] == pytest.approx(2 * p[0])
    assert [*found["loss/global"].ranks.values()] == pytest.approx(ranks)  # lower is better there


def test_nothing_to_rank() -> None:
    assert rank_tests(subject({"a": [0.5, 0.6]})) == [] and rank_tests(subject({"a": [0.5], "b": [0.6]})) == []
    assert rank_table(subject({"a": [0.5]})) == "" and result_table(subject({"a": [0.5, 0.6]})).ranks == ()
    same = rank_tests(subject({"a": [0.5, 0.6], "b": [0.5, 0.6], "c": [0.5, 0.6]}))[0]
    assert (
        same.friedman is None and same.wilcoxon == {"b": 1.0, "c": 1.0} and same.ranks == {"a": 2.0, "b": 2.0, "c": 2.0}
    )


def test_few_seeds_are_said() -> None:
    few, many = ({"a": [0.1 * i for i in range(n)], "b": [0.1 * i + 0.05 for i in range(n)]} for n in (5, 6))
    assert "With 5 seeds it cannot be below 0.0625" in note(rank_tests(subject(few)))
    assert "cannot" not in note(rank_tests(subject(many)))


def test_they_are_in_every_form_of_the_table() -> None:
    made = result_table(subject(VALUES))
    t = made.ranks[0]
    line = f"| accuracy/global | {t.ranks['first']:.2f} | {t.ranks['better']:.2f} | {t.ranks['like']:.2f} | 8 |"
    assert line in made.to_markdown() and "corrected by Holm" in made.to_markdown()
    assert made.to_latex().count(r"\begin{tabular}") == 2 and "mean rank & first & better & like" in made.to_latex()
    rows = list(csv.DictReader(io.StringIO(made.to_csv())))
    assert rows[2]["arm"] == "better" and float(rows[2]["holm"]) == t.holm["better"] and rows[0]["holm"] == ""
    assert "<h2>Ranks over seeds</h2>" in rank_table(subject(VALUES))
