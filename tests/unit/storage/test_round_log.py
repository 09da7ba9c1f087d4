"""Rows on disk: torn lines, and types of columns."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayfed.errors import DamagedFile
from rayfed.storage import round_log
from rayfed.storage.events import read_events
from rayfed.storage.run_folder import RunFolder
from tests.unit.storage.writer import ME, check_run, make_run, step


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


def harmed(path, line):
    """Flip one bit in the middle of a line of a part."""
    lines = path.read_bytes().splitlines(keepends=True)
    data = bytearray(lines[line])
    data[len(data) // 2] ^= 1
    path.write_bytes(b"".join([*lines[:line], bytes(data), *lines[line + 1 :]]))


def test_a_bit_in_a_row_is_noticed(tmp_path):
    folder = make_run(tmp_path, until=12)
    part = folder.path / "parts" / "rows-1.jsonl"
    whole = part.read_bytes()
    harmed(part, 6)
    with pytest.raises(DamagedFile, match=r"rows-1\.jsonl is damaged: line 7 has a wrong checksum\. rayfed resume"):
        round_log.read(folder.path)
    folder, last = check_run(folder.path)
    assert last == 5
    (aside,) = folder.path.glob(".damaged-rows-*")
    assert aside.read_bytes() != whole and len(aside.read_bytes()) == len(whole), "it is kept as it was found"
    notes = [e["note"] for e in read_events(folder.path) if e["kind"] == "set aside"]
    assert notes == [
        "parts/rows-1.jsonl: line 7 has a wrong checksum; set aside as .damaged-rows-1.jsonl",
        "snapshots/round-000010: the row of round 7 is lost; set aside as .damaged-round-000010",
    ]


def test_a_damaged_last_line_is_as_a_torn_one_for_readers(tmp_path):
    folder = make_run(tmp_path, until=6)
    harmed(folder.path / "parts" / "rows-1.jsonl", 5)
    assert list(round_log.read(folder.path)) == [1, 2, 3, 4, 5]


def test_lines_are_json_with_one_more_entry(tmp_path):
    folder = make_run(tmp_path, until=5)
    lines = [json.loads(line) for line in (folder.path / "parts" / "rows-1.jsonl").read_bytes().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5] and all(isinstance(n["crc32"], int) for n in lines)
    assert "clients" in lines[4] and "clients" not in lines[3]
    assert set(round_log.read(folder.path)[5]) == {"round", "loss/global", "bytes/up", "accuracy/global"}


@pytest.mark.parametrize("harm", ["another program", "a column", "cut"])
def test_compacted_rows_that_are_not_as_written_are_noticed(tmp_path, harm):
    folder = make_run(tmp_path, until=10)
    folder.finish("done", {})
    path = folder.path / "metrics.parquet"
    table = pq.read_table(path)
    assert table.column_names == ["round", "loss/global", "bytes/up", "accuracy/global"], "as ever for other readers"
    if harm == "another program":
        pq.write_table(table.replace_schema_metadata(None), path)
    elif harm == "a column":
        pq.write_table(table.rename_columns(["round", "loss/other", "bytes/up", "accuracy/global"]), path)
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DamagedFile, match=r"metrics\.parquet is damaged"):
        round_log.read(folder.path)
    folder = RunFolder.open(folder.path, owner=ME)
    assert folder.rewind() == (0, None) and round_log.read(folder.path) == {}
    assert (folder.path / ".damaged-metrics.parquet").exists()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("lost", [True, False])
def test_client_rows_that_are_damaged_or_lost_take_the_run_back(tmp_path, finished, lost):
    folder = make_run(tmp_path, until=12)
    if finished:
        folder.finish("done", {})
    path = round_log.client_files(folder.path)[10]
    path.unlink() if lost else path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedFile, match="it is missing" if lost else "it has a wrong checksum"):
        round_log.read_clients(folder.path, 10)
    assert round_log.read_clients(folder.path, 5)
    assert RunFolder.open(folder.path, owner=ME).rewind()[0] == 5
    assert (folder.path / f".damaged-{path.name}").exists() != lost


def test_foreign_files_stay(tmp_path):
    folder = make_run(tmp_path, until=5)
    for name in ("rows-x.jsonl", "clients-a-b.parquet", "notes.txt"):
        (folder.path / "parts" / name).write_text("mine")
    (folder.path / "clients").mkdir()
    (folder.path / "clients" / "round-five.parquet").write_text("mine")
    assert len(round_log.read(folder.path)) == 5
    folder.finish("done", {})
    assert {p.name for p in (folder.path / "parts").iterdir()} == {"rows-x.jsonl", "clients-a-b.parquet", "notes.txt"}
    assert list(round_log.client_files(folder.path)) == [5]
