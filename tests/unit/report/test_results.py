"""Verdicts, differences and costs on a page."""

from __future__ import annotations

from rayfed.report import study_summary, write_comparison
from rayfed.report.html import number
from rayfed.report.results import cost_table, final_values
from rayfed.report.study import differences
from rayfed.report.subject import load, load_comparison
from rayfed.storage.run_folder import RunFolder
from tests.unit.report.folders import CONFIG, ME, Page, make_short_run, make_study, page_of


def test_several_claims_on_one_page(tmp_path, undrawn):
    claims = [
        {"metric": "accuracy/global", "at": 10, "better": "disue", "than": "fedavg", "about": "Experts <pay>"},
        {"metric": "accuracy/global", "at": 10, "better": "fedavg", "than": "disue", "margin": 0.01},
        {"metric": "loss/global", "at": 10, "better": "fedavg", "than": "disue", "margin": -9.0},
    ]
    path = make_study(tmp_path, claim=claims)
    out = study_summary(path)
    assert [c["verdict"] for c in out["claim"]] == ["better", "worse", "worse"]
    text = " ".join(page_of(path).text.split())
    first, second, third = out["claim"]
    low, high = (number(x, sign=True) for x in first["ci95"])
    assert f"Experts <pay>Claim: disue beats fedavg in accuracy/global at round 10 — better. Mean improvement "\
        f"{number(first['mean_difference'], sign=True)}, 95 % interval {low} to {high}, 3 seeds, paired." in text  # fmt: skip
    assert (
        "fedavg beats disue in accuracy/global at round 10 by more than 0.0100 — worse, the margin is refuted" in text
    )
    assert (
        "in loss/global at round 10, fedavg is worse than disue by at most 9.0000 — worse, the margin is shown" in text
    )
    assert third["mean_difference"] < 0 and second["n"] == 3


def test_differences_need_the_same_split(tmp_path, several, undrawn):
    config = {**CONFIG, "seed": 0, "method": {"name": "other"}, "federation": {"clients": 41}}
    apart = make_short_run(RunFolder.create(tmp_path, config, owner=ME), [0.9])
    cut = make_short_run(
        RunFolder.create(tmp_path, {**CONFIG, "method": {"name": "cut"}}, owner=ME), [0.9], finish=False
    )
    subject = load_comparison([*several, apart, cut])
    assert list(subject.arms) == ["fedavg", "ifca", "other", "cut"] and list(differences(subject)) == ["ifca"]
    text = " ".join(Page(write_comparison([*several, apart, cut], tmp_path / "c.html").read_text()).text.split())
    assert "other, cut: nothing to compare: no seed that is done on the same split in both." in text
    assert "1 of 6 runs are not done" in text


def test_a_sure_difference_is_marked(tmp_path, undrawn):
    made = []
    for method, level in (("fedavg", 0.5), ("ifca", 0.75), ("worse", 0.25)):
        for seed in range(3):
            config = {**CONFIG, "seed": seed, "method": {"name": method}}
            made.append(
                make_short_run(
                    RunFolder.create(tmp_path, config, owner=ME), [level + 0.001 * seed * (method != "ifca")]
                )
            )
    said = Page(write_comparison(made, tmp_path / "c.html").read_text()).text
    assert "▲ +0.2490" in said and "▲ −0.2490" in said and "▼ −0.2500" in said and "▼ +0.2500" in said


def test_costs_are_compared_with_the_first_arm(several):
    text = Page(cost_table(load_comparison(several))).text
    assert "9.0 MB" in text and "4.0 MB" in text and "1.00 ×" in text and "0.50 ×" in text  # 12 and 6 MB in all
    alone = Page(cost_table(load(several[0]))).text
    assert "×" not in alone and "2.0 s" in alone


def test_a_run_without_rounds_has_no_values(tmp_path):
    folder = RunFolder.create(tmp_path, CONFIG, owner=ME)
    assert "No round has been written yet" in final_values(load(folder.path))
    folder.commit(1, {"time/round": 1.0})
    assert "No round has been evaluated yet" in final_values(load(folder.path))
