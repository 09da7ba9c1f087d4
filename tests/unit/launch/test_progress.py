"""Live lines, and the tables at the end of a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfed.launch.progress import human, line, print_result, print_sweep


def test_bytes_are_short() -> None:
    assert [human(n) for n in (0, 999, 1000, 1_234_567, 2e9, 3e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.2 MB",
        "2.0 GB",
        "3.0 TB",
    ]


def test_a_line_says_run_round_scores_and_time() -> None:
    state = {
        "arm": "ifca", "seed": 1, "run_number": 2, "runs": 4, "status": "running", "round": 3, "rounds": 20, "eta_s": 61.4,
        "metrics": {"accuracy/global": 0.51234, "loss/global": 1.5, "clusters/ari": 1.0}, "clients_per_s": 12.6, "bytes": 2_500_000,
    }  # fmt: skip
    assert line(state) == (
        "[2/4] ifca seed 1  round 3/20  accuracy/global 0.512  loss/global 1.500  13 clients/s  2.5 MB  61 s left"
    )
    assert line({"status": "starting", "round": 0}) == "starting"


def test_a_task_without_accuracy_shows_what_it_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {
        "loss/personal": 0.5,
        "loss/local": 0.4,
        "rmse/personal": 61.25,
        "rmse/personal_ex": 62.0,
        "recall-a/global": 1.0,
    }
    state = {"status": "running", "round": 3, "rounds": 20, "metrics": {**scores, "bytes/up": 3.0}}
    assert line(state) == "round 3/20  loss/personal 0.500  rmse/personal 61.250"
    found = {n: {"final": v, "best": v, "best_round": 3} for n, v in {**scores, "bytes/up": 3.0}.items()}
    print_result(tmp_path, {"method": "fedavg", "rounds": 3, "wall_s": 1.0, "metrics": found, "notes": []})
    out = capsys.readouterr().out
    assert all(n in out for n in ("rmse/personal", "rmse/personal_ex", "loss/local")) and "61.2500" in out
    assert "recall-a" not in out and "bytes/up" not in out


def test_the_table_of_a_study_begins_with_the_metrics_that_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("loss/global", "accuracy/global", "accuracy/personal", "accuracy/cluster", "f1/global", "mine/personal")
    arms = {"fedavg": {n: {"mean": 0.5, "sd": None, "n": 1} for n in names}}
    study = tmp_path / "study.yaml"
    heads = []
    for asked in ("", "evaluate: {metrics: [own.py:mine, f1]}\n"):
        study.write_text(asked + "arms: {fedavg: {}}\n", encoding="utf-8")
        print_result(tmp_path, {"arms": arms})
        lines = capsys.readouterr().out.splitlines()
        above, below = (line.replace("┃", " ").split() for line in (lines[2], lines[3]))
        heads.append([f"{a}/{b}" for a, b in zip(above, below[1:], strict=True)])
    assert heads[0] == ["accuracy/global", "accuracy/personal", "accuracy/cluster", "loss/global"]
    assert heads[1] == ["mine/personal", "f1/global", "accuracy/global", "accuracy/personal"]


def test_the_table_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = {"point": {"method.clusters": 3}, "value": 0.5, "sd": 0.25, "seeds": {"0": 0.25, "1": 0.75}, "round": 4}
    second = {**best, "value": 0.25, "sd": None, "difference": {"mean": -0.25, "ci95": [-0.5, 0.0], "n": 2}}
    trials = {"planned": 4, "begun": 4, "complete": 1, "diverged": 1, "failed": 1}
    summary = {
        "trials": trials,
        "rounds": 16,
        "metric": "accuracy/global",
        "best": [{**best, "difference": None}, second],
        "notes": ["changed before a resume, and accepted: code: own.py was changed"],
        "diverged": [{"point": {"method.clusters": 9}, "diverged": 3}],
        "errors": [{"point": {"method.clusters": 8}, "diverged": None}],
    }
    print_sweep(tmp_path, summary)
    out = capsys.readouterr().out
    for piece in (
        "best of 4 trials, 1 complete, 1 diverged, 1 failed; 16 rounds in all",
        "diverged in round 3",
        "note: changed before a resume",
        "minus the best",
        "0.500 ± 0.250",
        "-0.250 [-0.500, +0.000]",
    ):
        assert piece in out, piece
    assert out.splitlines()[-1] == f"report: {tmp_path / 'sweep.html'}"
