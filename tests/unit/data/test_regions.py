"""Masks and boxes in a table's columns: what is read, and which file and row is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayfed import data
from rayfed.config.schema import Named
from rayfed.errors import ConfigError

RNG = np.random.default_rng(0)


def png(a: np.ndarray, palette: bool = False) -> bytes:
    image = Image.fromarray(a.astype(np.uint8), "P" if palette else "L")
    if palette:
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write(where: Path, **columns: list[Any]) -> str:
    images = [png(RNG.integers(0, 255, (4, 6))) for _ in next(iter(columns.values()))]
    pq.write_table(pa.table({"image": images, **columns}), where / "train.parquet")
    return f"parquet:{where}"


def load(name: str, **options: Any) -> data.Dataset:
    spec = Named.model_validate({"name": name, **options})
    assert data.check(spec) == []
    return data.load(spec, 0)


@pytest.mark.parametrize("palette", [False, True])
def test_masks_of_pictures_and_of_lists(tmp_path: Path, palette: bool) -> None:
    masks = [RNG.integers(0, 3, (4, 6)) for _ in range(6)]
    name = write(tmp_path, seg=[png(m, palette) for m in masks])
    d = load(name, masks="seg", test=0.5)
    read = np.concatenate([d.train.columns["masks"], d.test.columns["masks"]])
    assert sorted(m.tobytes() for m in read) == sorted(m.astype(np.int64).tobytes() for m in masks)
    assert d.classes == 1 and d.form == "classes"
    lists = load(write(tmp_path, seg=[m.tolist() for m in masks]), masks="seg", size=[8, 12])
    (first, *_) = lists.train.columns["masks"]
    assert first.shape == (8, 12) and any(np.array_equal(first[::2, ::2], m) for m in masks)  # the nearest pixel


def test_boxes(tmp_path: Path) -> None:
    name = write(tmp_path, objects=[[[1, 0, 0, 6, 4], [0, 2, 1, 4, 3]], [], [[0, 1.5, 1, 3, 2]], [[1, 1, 1, 2, 2]]])
    d = load(name, boxes="objects", size=[8, 6], test=0.25)
    assert d.classes == 2 and d.label_names == ("0", "1")
    every = np.concatenate([d.train.columns["boxes"], d.test.columns["boxes"]])
    assert every.shape == (4, 2, 5) and [1, 0, 0, 6, 8] in every[:, 0].tolist()  # twice as high
    y = np.concatenate([d.train.y, d.test.y])
    assert np.array_equal(y, np.maximum(every[:, 0, 0], 0))


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"seg": [[[0, 1]] * 4] * 4}, {"masks": "seg"}, r"row 0 of .*train.parquet has a mask of shape \(4, 2\), its picture is 4x6"),
        ({"seg": [[[0.5] * 6] * 4] * 4}, {"masks": "seg"}, r"row 0 of .* of whole numbers"),
        ({"seg": [b"none"] * 4}, {"masks": "seg"}, r"row 0 of .*train.parquet cannot be read as a picture"),
        ({"b": [[[0, 1, 1, 2, 2]], [[0, 1, 1, 7, 2]]] * 2}, {"boxes": "b"}, r"box 0 of row 1 of .*train.parquet is .*right <= 6"),
        ({"b": [[[0, 1, 1, 2]]] * 4}, {"boxes": "b"}, r"row 0 of .* allowed: lists of \[class, left, top, right, bottom\]"),
        ({"b": [[[0.5, 1, 1, 2, 2]]] * 4}, {"boxes": "b"}, r"allowed: a class from 0"),
    ],
)  # fmt: skip
def test_what_fits_no_picture_is_refused(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load(write(tmp_path, **columns), **options)


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    name = write(tmp_path, b=[[[0, 1, 1, 2, 2]]] * 4, label=[0, 1, 0, 1])

    def problems(**options: Any) -> list[str]:
        return data.check(Named.model_validate({"name": name, **options}))

    assert "boxes and label are both set" in problems(boxes="b", label="label")[0]
    assert "task.data.fit: crop found" in problems(boxes="b", size=4, fit="crop")[0]
    assert "allowed: lists of [class, left, top, right, bottom]" in problems(boxes="label")[0]
    assert "has no column 'bs'" in problems(boxes="bs")[0]
