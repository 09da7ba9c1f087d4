"""What benchmarks/peers/run.py compares and keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import run


def test_what_another_machine_measured_is_kept_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "peers.json"
    measured = {"about": {"w1": {"machine": "Some CPU (A), 2 cores"}}, "workloads": {"w1": {}}}
    file.write_text(json.dumps(measured))
    assert run.previous(file, "Some CPU (A), 2 cores") == measured
    assert run.previous(file, "Another CPU") == {"about": {}, "workloads": {}}
    assert not file.exists()
    assert json.loads((tmp_path / "peers-some-cpu-a-2-cores.json").read_text()) == measured


def test_apart_is_a_share_of_how_far_the_loop_moved() -> None:
    start, loop, end = ({"a": np.array([0.0, 1.0]), "b": np.array([2.0])} for _ in range(3))
    loop["b"], end["b"] = np.array([6.0]), np.array([5.0])
    assert run.apart(start, end, loop) == 0.25
    assert run.apart(start, dict(reversed(loop.items())), loop) == 0.0


def test_a_slower_sides_weights_are_compared_with_the_loops_after_as_many_rounds(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"own": {"mine": "w"}}))
    np.savez(tmp_path / "start.npz", w=np.zeros(1))
    np.savez(tmp_path / "plan.npz", clients=np.zeros((4, 10)))
    times = {"body_s": 1.0, "period_s": 2.0}
    loop = {"engine": "loop", **times, "rounds": 4, "end": {"w": np.ones(1)}, "ends": {2: {"w": np.full(1, 0.5)}}}
    slow = {"engine": "flower", **times, "rounds": 2, "end": {"w": np.full(1, 0.5)}, "ends": {}}
    own = {"engine": "rayfed_user", **times, "rounds": 4, "end": {"mine": np.ones(1)}, "ends": {}}
    found = run.judged([loop, slow, own], tmp_path)
    assert [found[s]["apart"] for s in ("loop", "flower", "rayfed_user")] == [0, 0, 0]
    assert found["loop"]["visits_per_s"] == 5.0


def test_a_sitting_goes_on_with_what_it_has_not_measured() -> None:
    measured = {"w1": {"sitting": "2026-02-01 10:00"}, "w2": {"sitting": "2026-01-01 10:00"}, "w3": {}}
    assert run.progress(measured, True) == ({"w1"}, "2026-02-01 10:00")
    done, fresh = run.progress(measured, False)
    assert not done and fresh > "2026-02-01"
    assert run.progress({"w3": {}}, True)[0] == set()
