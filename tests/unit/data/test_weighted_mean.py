"""A round over clients of very unlike sizes, computed by hand in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayfed
from rayfed import data
from rayfed.config.schema import Named

SIZES = {"big": 37, "one": 1, "mid": 12}


def test_the_models_of_natural_clients_are_weighed_by_their_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    client = [c for c, n in SIZES.items() for _ in range(n)] + ["big"] * 20
    y = rng.integers(0, 2, len(client))
    table = {
        "a": rng.normal(size=len(client)), "b": 1e4 * rng.normal(size=len(client)) + 5e4, "label": y, "client": client,
        "split": ["train"] * 50 + ["test"] * 20,
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    source = {"name": f"parquet:{tmp_path}", "features": ["a", "b"]}
    config: dict[str, Any] = {
        "task": {"data": source, "model": "linear", "dtype": "float64"},
        "federation": {
            "clients": 3, "per_round": 3, "partition": {"kind": "natural", "min_examples": 1}, "split": {"test": 0, "val": 0},
        },
        "local": {"epochs": 2, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.5}},
        "method": "fedavg",
        "rounds": 1,
        "storage": {"path": str(tmp_path / "runs")},
    }  # fmt: skip
    after = [rayfed.run({**config, "rounds": n}, local=True).model() for n in (1, 2)]
    rows = data.load(Named.model_validate(source), 0).train
    assert rows.client is not None and [int((rows.client == c).sum()) for c in SIZES] == list(SIZES.values())

    def descend(w: np.ndarray, b: np.ndarray, x: np.ndarray, one_hot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for _ in range(2):
            z = x @ w.T + b
            p = np.exp(z - z.max(1, keepdims=True))
            error = (p / p.sum(1, keepdims=True) - one_hot) / len(x)
            w, b = w - 0.5 * error.T @ x, b - 0.5 * error.sum(0)
        return w, b

    w0, b0 = (after[0][f"head.{n}"].double().numpy() for n in ("weight", "bias"))
    made = []
    for name in SIZES:
        mine = rows.client == name
        made.append(descend(w0, b0, rows.x[mine].astype(np.float64), np.eye(2)[rows.y[mine]]))
    share = np.array(list(SIZES.values())) / 50
    for n, by_hand in zip(("weight", "bias"), (sum(s * m[i] for s, m in zip(share, made)) for i in (0, 1))):
        assert after[1][f"head.{n}"].numpy() == pytest.approx(by_hand, abs=1e-8)
