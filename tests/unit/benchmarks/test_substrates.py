"""Data that packages carry: archives are checked, their content becomes Parquet that rayfed reads."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import substrates

from rayfed import data
from rayfed.config.schema import Named
from rayfed.launch.claims import MADE_BY, SUBSTRATES, substrates_folder


def write_idx(file: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    file.write_bytes(gzip.compress(head + array.tobytes()))


def test_idx_files_are_read_as_they_are_written(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 3)).astype(np.uint8)
    write_idx(tmp_path / "x.gz", x)
    assert (substrates._idx(tmp_path / "x.gz") == x).all()
    (tmp_path / "y.gz").write_bytes(gzip.compress(b"no such file"))
    with pytest.raises(RuntimeError, match="no IDX file"):
        substrates._idx(tmp_path / "y.gz")


def test_an_archive_that_is_another_is_refused_and_the_right_one_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "clothes.deb"
    archive.write_bytes(b"an archive")
    x = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    package = substrates.Package(("false",), "clothes=1", hashlib.sha256(b"an archive").hexdigest())

    def convert(archive: Path, shelf: Path | None) -> Any:
        for part in ("train", "test"):
            yield part, substrates.pictures(x, np.array([1, 0]), "clothes", ("shirt", "shoe"))

    monkeypatch.setitem(substrates.SUBSTRATES, "clothes", (package, convert))
    folder = substrates.make("clothes", tmp_path / "out", archive=archive)
    read = data.load(Named(name=f"parquet:{folder}"), 0)
    assert (read.train.x[:, 0] == x.astype(np.float32) / 255).all() and read.train.y.tolist() == [1, 0]
    assert list(read.label_names) == ["shirt", "shoe"]
    archive.write_bytes(b"another archive")
    with pytest.raises(RuntimeError, match="it is not what was looked at"):
        substrates.make("clothes", tmp_path / "other", archive=archive)
    with pytest.raises(RuntimeError, match="clothes=1 cannot be downloaded"):
        substrates.make("clothes", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_claims_name_what_the_script_makes() -> None:
    wanted = [folder.rpartition("/")[2] for folder in MADE_BY if SUBSTRATES in folder]
    assert wanted and set(wanted) <= set(substrates.SUBSTRATES)
    assert all(MADE_BY[f"${{{SUBSTRATES}}}/{n}"].startswith(f"python benchmarks/substrates.py {n}") for n in wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("fashion_mnist_small", (6000, 2000)), ("banking77_minilm", (10003, 3080))])
def test_what_was_made_is_read(name: str, rows: tuple[int, int]) -> None:
    folder = substrates_folder() / name
    if not (folder / "train.parquet").is_file():
        pytest.skip(f"{folder} is not here: {MADE_BY[f'${{{SUBSTRATES}}}/{name}']}")
    assert tuple(pq.read_metadata(folder / f"{p}.parquet").num_rows for p in ("train", "test")) == rows
    read = data.load(Named(name=f"parquet:{folder}"), 0)
    assert read.classes == {"fashion_mnist_small": 10, "banking77_minilm": 77}[name]
