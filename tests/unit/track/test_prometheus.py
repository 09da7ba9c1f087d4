"""Prometheus: values of rows, their text format, and another exporter in place of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayfed.storage.run_folder import read_metrics
from rayfed.track import prometheus
from rayfed.track.prometheus import BUCKETS, METRICS, Series, readings, trial_name
from tests import toy
from tests.unit.monitor.runs import samples


def test_the_text_file_has_the_values_of_the_rows(tmp_path: Path) -> None:
    ran = toy.run_folder({"name": "ifca", "clusters": 3}, tmp_path, rounds=4, track=["prometheus"])
    folder = ran.folder.path
    rows, found = read_metrics(folder).to_pylist(), samples((folder / "metrics.prom").read_text())
    run = json.loads((folder / "lock.json").read_text())["run"]
    of = f'run="{run}",trial="",method="ifca"'
    assert found[f"rayfed_round{{{of}}}"] == 4 and found[f"rayfed_rounds{{{of}}}"] == 4
    assert found[f"rayfed_running{{{of}}}"] == 0
    for kind in ("accuracy", "loss"):
        assert found[f'rayfed_{kind}{{{of},scope="personal"}}'] == rows[-1][f"{kind}/personal"]
    assert found[f'rayfed_score{{{of},name="clusters/count",scope=""}}'] == rows[-1]["clusters/count"]
    assert found[f'rayfed_bytes_total{{{of},direction="up"}}'] == sum(r["bytes/up"] for r in rows)
    assert found[f"rayfed_round_seconds_count{{{of}}}"] == 4
    assert found[f"rayfed_round_seconds_sum{{{of}}}"] == pytest.approx(sum(r["time/round"] for r in rows))
    assert not [k for k in found if "client=" in k]


def test_a_resumed_run_continues_to_count(tmp_path: Path) -> None:
    first = toy.run_folder("fedavg", tmp_path, rounds=3, stop_after=2, track=["prometheus"])
    toy.run_folder("fedavg", tmp_path, rounds=3, resume=True, track=["prometheus"])
    rows, found = first.folder.metrics().to_pylist(), samples((first.folder.path / "metrics.prom").read_text())
    (up,) = [v for k, v in found.items() if k.startswith("rayfed_bytes_total") and 'direction="up"' in k]
    (count,) = [v for k, v in found.items() if k.startswith("rayfed_round_seconds_count")]
    assert len(rows) == count == 3 and up == sum(r["bytes/up"] for r in rows)


def test_readings_of_a_row() -> None:
    row = {
        "round": 3, "accuracy/global": 0.5, "accuracy/global_ex": 0.4, "rmse/unseen": 2.0, "loss/personal": float("nan"),
        "my/thing": 1, "time/round": 2.5, "bytes/up": 10, "actors/restarts": 5, "clients/per_second": None, "ray/bytes": 1.0,
    }  # fmt: skip
    found = {(n, *labels.values()): v for n, v, labels in readings(row, restarts=3)}
    assert found == {
        ("rayfed_round",): 3, ("rayfed_round_seconds",): 2.5, ("rayfed_bytes_total", "up"): 10, ("rayfed_bytes_total", "down"): 0,
        ("rayfed_actor_restarts_total",): 2, ("rayfed_accuracy", "global"): 0.5, ("rayfed_score", "rmse", "unseen"): 2.0,
        ("rayfed_score", "my/thing", ""): 1,
    }  # fmt: skip


def test_a_histogram_is_cumulative_and_labels_are_quoted() -> None:
    series = Series()
    for seconds in (0.05, 0.1, 2.0, 1e6):
        series.put("rayfed_round_seconds", seconds, {"run": 'a"\\\n'})
    text = series.text()
    found = [v for k, v in samples(text).items() if "_bucket" in k]
    assert found == [sum(s <= b for s in (0.05, 0.1, 2.0, 1e6)) for b in (*BUCKETS, float("inf"))] and found[-1] == 4
    assert r'run="a\"\\\n"' in text


def test_trials_are_named_by_study_and_sweep(tmp_path: Path) -> None:
    for home, file in (("study", "study.yaml"), ("sweep", "sweep.yaml")):
        (tmp_path / home).mkdir()
        (tmp_path / home / file).touch()
    assert trial_name(tmp_path / "study" / "ifca" / "seed-2") == "ifca/seed-2"
    assert trial_name(tmp_path / "sweep" / "t3" / "clone-1" / "seed-0") == "t3/clone-1/seed-0"
    (tmp_path / "study.yaml").touch()  # a study's file next to the folder of runs makes no study of them
    assert trial_name(tmp_path / "runs" / "alone-20260101-000000-abcd") == ""


class Recorder:
    """An exporter that keeps what it is given."""

    def __init__(self, labels: dict[str, str]):
        self.labels, self.restarts, self.values, self.closed = labels, 2, [], 0  # type: ignore[var-annotated]

    def put(self, name: str, value: float, /, **labels: str) -> None:
        self.values.append((name, value, labels))

    def publish(self) -> None: ...

    def close(self) -> None:
        self.closed += 1


def test_another_exporter_takes_the_place_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorder] = []
    monkeypatch.setattr(prometheus, "_exporter", None)
    prometheus.set_exporter(lambda labels: made.append(Recorder(labels)) or made[-1])  # type: ignore[func-returns-value]
    ran = toy.run_folder("fedavg", tmp_path, rounds=2, track=["prometheus"])
    (recorder,) = made
    assert recorder.labels == {"run": ran.folder.run_id, "trial": "", "method": "fedavg"} and recorder.closed == 1
    assert [v for n, v, _ in recorder.values if n == "rayfed_round"] == [1, 2]
    assert [v for n, v, _ in recorder.values if n == "rayfed_running"] == [1, 0]
    assert all(set(labels) == set(METRICS[name].labels) for name, _, labels in recorder.values)
    assert not (ran.folder.path / prometheus.FILE).exists()
