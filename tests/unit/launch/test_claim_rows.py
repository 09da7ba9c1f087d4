"""Scores by row in a claim's entry."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayfed.launch.claim_rows import pack, unpack
from rayfed.storage import row_scores

ROWS, SIZES = np.array([7, 2, 900, 3, 11]), np.array([2, 0, 3])


def run(folder: Path, seed: int, **scores: Any) -> Any:
    kept = {n: np.array(x, np.float32) for n, x in scores.items()}
    row_scores.write(folder / str(seed), 4, {"personal": {"rows": ROWS + seed, "sizes": SIZES, **kept}})
    return SimpleNamespace(path=folder / str(seed), seed=seed)


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    right, loss = {1: [0, 1, 1, 0, 1], 2: [1, 1, 1, 1, 1]}, [0.5, 1.5, 0.1, 0.0, 2.0]
    runs = {"a": [run(tmp_path, s, accuracy=right[s], loss=loss) for s in right]}
    judged = [("accuracy/personal", 4), ("loss/personal", 4), ("accuracy/global", 4)]
    packed = json.loads(json.dumps(pack(runs, judged)))
    found = unpack(packed, "accuracy/personal", 4, "a")
    assert {s: x.values.tolist() for s, x in found.items()} == {str(s): x for s, x in right.items()}
    assert found["2"].rows.tolist() == (ROWS + 2).tolist() and found["1"].sizes.tolist() == SIZES.tolist()
    assert found["1"].weights == pytest.approx([1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6])
    assert unpack(packed, "loss/personal", 4, "a")["1"].values.tolist() == np.array(loss, np.float32).tolist()
    assert unpack(packed, "accuracy/global", 4, "a") == {} == unpack(packed, "accuracy/personal", 4, "b")
    assert unpack({}, "accuracy/personal", 4, "a") == {} == pack({"a": []}, judged)


def test_a_thousand_rows_take_a_few_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kept = {"rows": np.arange(5000, 6000), "sizes": np.array([1000]), "accuracy": rng.integers(0, 2, 1000).astype("f4")}
    row_scores.write(tmp_path, 1, {"global": kept})
    packed = pack({"a": [SimpleNamespace(path=tmp_path, seed=1)]}, [("accuracy/global", 1)])  # type: ignore[list-item]
    assert len(json.dumps(packed["scores"])) < 250 and len(json.dumps(packed["splits"])) < 150
