"""Rows on disk: torn lines, and types of columns."""

from __future__ import annotations

import math

import numpy as np

from rayfed.storage.run_folder import RunFolder
from tests.unit.storage.writer import make_run, step


def test_columns_types_and_nulls(tmp_path):
    import pyarrow as pa

    folder = make_run(tmp_path)
    folder.commit(1, {"a/x": 1, "b": np.float32(0.5), "n": np.int64(3), "never": None})
    folder.commit(2, {"a/x": 2.5, "n": True, "c/late": float("nan")})
    for finished in (False, True):
        if finished:
            folder.finish("done", {})
        table = folder.metrics()
        assert table.column_names == ["round", "a/x", "b", "n", "never", "c/late"]
        kinds = dict(zip(table.column_names, table.schema.types, strict=True))
        assert kinds == {"round": pa.int64(), "n": pa.int64()} | {
            n: pa.float64() for n in ("a/x", "b", "never", "c/late")
        }
        one, two = table.to_pylist()
        assert one == {"round": 1, "a/x": 1.0, "b": 0.5, "n": 3, "never": None, "c/late": None}
        assert two["b"] is None and two["n"] == 1 and math.isnan(two["c/late"])


def test_a_torn_line_does_not_count(tmp_path):
    folder = make_run(tmp_path, until=6)
    with open(folder.path / "parts" / "rows-1.jsonl", "ab") as f:
        f.write(b'{"round": 7, "loss/gl' + b"x" * 100_000)
    assert folder.metrics().num_rows == 6
    step(RunFolder.attach(folder.path, 1), 7)
    assert folder.metrics()["round"].to_pylist() == list(range(1, 8))
    assert len((folder.path / "parts" / "rows-1.jsonl").read_bytes()) < 2000
