"""Pictures of every depth and mode keep their values; one form is decided over both parts; what was done is a note."""

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
from rayfed.data import pictures
from tests.unit.data.sets import load, refused

LEVELS = np.linspace(0, 255, 17).astype(np.uint8)  # of a scan with 17 grey levels


def greys(n: int = 6, seed: int = 0) -> np.ndarray:
    """(n, 4, 6) uint8."""
    return np.random.default_rng(seed).choice(LEVELS, (n, 4, 6))


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def write(folder: Path, images: Any, name: str = "train") -> str:
    """A Parquet file of pictures with their number as client."""
    n = len(images)
    pq.write_table(
        pa.table({"image": images, "label": [0, 1] * (n // 2) + [0] * (n % 2), "client": list(map(str, range(n)))}),
        folder / f"{name}.parquet",
    )
    return f"parquet:{folder}"


def rows(d: data.Dataset) -> np.ndarray:
    """x (n, C, H, W) in the order of the file."""
    x = np.concatenate([d.train.x, d.test.x])
    assert d.train.client is not None and d.test.client is not None
    return x[np.argsort([int(c) for c in [*d.train.client, *d.test.client]])]


def palette(a: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(a, "L").convert("P") if not colours else Image.fromarray(a, "P")
    if colours:
        image.putpalette(colours)
    return image


def test_eight_bits_are_divided_by_255(tmp_path: Path) -> None:
    a = greys()
    d = load(write(tmp_path, [encoded(Image.fromarray(p)) for p in a]))
    assert d.input_shape == (1, 4, 6) and d.notes == ()
    assert np.array_equal(rows(d)[:, 0], a.astype(np.float32) / np.float32(255))


def test_sixteen_bits_keep_their_levels(tmp_path: Path) -> None:
    a = greys()
    wide = [encoded(Image.fromarray(p.astype(np.uint16) * 257)) for p in a]
    d = load(write(tmp_path, wide))
    assert d.input_shape == (1, 4, 6) and len(np.unique(rows(d))) == len(np.unique(a))
    assert np.abs(rows(d)[:, 0] - a / 255).max() < 1e-6
    assert d.notes == (f"the images of parquet:{tmp_path} are uint16 and were divided by 65,535",)
    mixed = load(write(tmp_path, [*wide[:3], *(encoded(Image.fromarray(p)) for p in a[3:])]))
    assert np.abs(rows(mixed)[:, 0] - a / 255).max() < 1e-6 and "uint16 and uint8" in mixed.notes[0]


def test_float_pictures_stay_as_they_are(tmp_path: Path) -> None:
    a = np.random.default_rng(0).normal(size=(6, 4, 6)).astype(np.float32)
    d = load(write(tmp_path, [encoded(Image.fromarray(p), "TIFF") for p in a]))
    assert np.array_equal(rows(d)[:, 0], a)
    assert "are float32 from -" in d.notes[0] and "are used as they are" in d.notes[0]


def test_palettes_give_their_colours_and_greys_their_grey(tmp_path: Path) -> None:
    a = greys()
    grey = [v for k in range(256) for v in (k, k, k)]
    d = load(write(tmp_path, [encoded(palette(p, grey)) for p in a]))
    assert d.input_shape == (1, 4, 6) and np.array_equal(rows(d)[:, 0], a.astype(np.float32) / np.float32(255))
    colours = [v for k in range(256) for v in (k, 255 - k, 7)]
    d = load(write(tmp_path, [encoded(palette(p, colours)) for p in a]))
    right = np.stack([a, 255 - a, np.full_like(a, 7)], 1).astype(np.float32) / np.float32(255)
    assert np.array_equal(rows(d), right)


def test_transparency_is_a_channel_where_there_is_some(tmp_path: Path) -> None:
    a = np.random.default_rng(0).integers(0, 256, (6, 4, 6, 4), np.uint8)
    name = write(tmp_path, [encoded(Image.fromarray(p)) for p in a])
    d = load(name)
    assert d.input_shape == (4, 4, 6)
    assert np.array_equal(rows(d), a.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    assert load(name, channels=3).input_shape == (3, 4, 6) and np.array_equal(
        rows(load(name, channels=3)), rows(d)[:, :3]
    )
    a[..., 3] = 255
    assert load(write(tmp_path, [encoded(Image.fromarray(p)) for p in a])).input_shape == (3, 4, 6)
    keyed = load(write(tmp_path, [encoded(Image.fromarray(p), transparency=0) for p in greys()]))
    assert keyed.input_shape == (2, 4, 6)
    assert np.array_equal(rows(keyed)[:, 1], (greys() > 0).astype(np.float32))


def test_grey_and_colour_pictures_become_one_form_over_both_parts(tmp_path: Path) -> None:
    a, b = greys(), np.random.default_rng(1).integers(0, 256, (2, 4, 6, 3), np.uint8)
    name = write(tmp_path, [encoded(Image.fromarray(p)) for p in a])
    write(tmp_path, [encoded(Image.fromarray(p)) for p in b], "test")
    d = load(name)
    assert d.train.x.shape == (6, 3, 4, 6) and d.test.x.shape == (2, 3, 4, 6)
    assert np.array_equal(d.train.x, np.repeat(a[:, None], 3, 1).astype(np.float32) / np.float32(255))
    assert d.notes == (f"6 of 8 images of {name} were made colour as the others are",)
    assert load(name, channels=1).input_shape == (1, 4, 6)


def test_sizes_are_made_one_only_on_request(tmp_path: Path) -> None:
    images = [np.full((8, 8), 51, np.uint8), np.full((8, 9), 102, np.uint8)] * 2
    name = write(tmp_path, [encoded(Image.fromarray(p)) for p in images])
    text = refused(name)
    assert "must have one size; found 2: 8x8, 8x9 (resize them with size: PIXELS or size: [HEIGHT, WIDTH])" in text
    d = load(name, size=[4, 6])
    assert d.input_shape == (1, 4, 6) and np.allclose(rows(d)[:, 0, 0, 0], [0.2, 0.4] * 2)
    assert load(name, size=5).input_shape == (1, 5, 5) and "resized to 5x5" in load(name, size=5).notes[-1]


@pytest.mark.parametrize(
    ("kind", "factor", "note"),
    [
        ("uint8", 255, None),
        ("uint16", 65535, "are uint16 and were divided by 65,535"),
        ("bool", 1, None),
        ("float32", 1, "are float32 from 0 to 200 and are used as they are"),
        ("int64", 1, "are int64 from 0 to 200 and are used as they are"),
    ],
)
def test_arrays_are_scaled_by_their_type_alone(tmp_path: Path, kind: str, factor: int, note: str | None) -> None:
    a = (np.arange(4 * 3 * 2).reshape(4, 3, 2) * 200 // 23).astype(kind)
    of = pa.list_(pa.list_(pa.from_numpy_dtype(a.dtype)))
    name = write(tmp_path, pa.array(a.tolist(), of))
    d = load(name)
    assert np.array_equal(rows(d)[:, 0], a.astype(np.float32) / np.float32(factor))
    assert [n for n in d.notes if note is None or note not in n] == [] and len(d.notes) == (note is not None)
    d = load(name, scale=4)
    assert np.array_equal(rows(d)[:, 0], a.astype(np.float32) / np.float32(4)) and d.notes == ()


def test_arrays_may_have_channels_first_or_last_and_several_sizes(tmp_path: Path) -> None:
    a = np.random.default_rng(0).random((4, 5, 6, 3)).astype(np.float32)
    assert np.array_equal(
        rows(load(write(tmp_path, pa.array(a.tolist(), pa.list_(pa.list_(pa.list_(pa.float32()))))))),
        a.transpose(0, 3, 1, 2),
    )
    first = a.transpose(0, 3, 1, 2)
    assert np.array_equal(rows(load(write(tmp_path, first.tolist()))), first)
    ragged = [a[0].tolist(), a[1, :4].tolist()]
    assert "must have one size; found 2: 4x6, 5x6" in refused(write(tmp_path, ragged))
    assert load(write(tmp_path, ragged), size=3).input_shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([[[1.0, float("nan")]], [[1.0, 2.0]]], "1 images of {} hold NaN, infinite or too large values (first: row 0)"),
        ([[[1.0, None]], [[1.0, 2.0]]], "1 images of {} hold NaN"),
        ([[[1, None]], [[1, 2]]], "has rows that are no arrays"),
        ([[[1, 2], [3]], [[1, 2], [3, 4]]], "has rows that are no arrays"),
        ([[1, 2], [1, 2]], "holds arrays of shape (2,), allowed: (height, width)"),
        (pa.array([[[]], [[]]], pa.list_(pa.list_(pa.int64()))), "holds arrays of shape (1, 0)"),
        ([None, [[1.0]]], "1 rows of {file} have no image"),
        ([[["a"]], [["b"]]], "allowed: raw bytes, encoded pictures, or arrays of numbers"),
        ([b"\x89PNG\r\n\x1a\nnonsense", b"x"], "row 0 of {file} cannot be read as a picture"),
        ([b"abc", b"abd"], "raw bytes need shape: [height, width, channels]"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, images: Any, says: str) -> None:
    name = write(tmp_path, images)
    assert says.format(name, file=tmp_path / "train.parquet") in refused(name)


def test_encoded_pictures_under_a_shape_are_named_as_such(tmp_path: Path) -> None:
    name = write(tmp_path, [encoded(Image.fromarray(p)) for p in greys()])
    assert "they are encoded pictures: leave `shape` out" in refused(name, shape=[4, 6, 1])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 0}, "task.data.size: 0 found, allowed: pixels of a side"),
        ({"size": [3]}, "task.data.size: [3] found"),
        ({"size": 10**6}, "task.data.size: 1000000 found"),
        ({"size": True}, "task.data.size: True found"),
        ({"channels": 4}, "task.data.channels: 4 found, allowed: 1 (grey), 3 (colour)"),
        ({"scale": 0}, "task.data.scale: 0 found, allowed: a number > 0"),
    ],
)
def test_wrong_options_of_pictures(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    assert says in refused(write(tmp_path, [encoded(Image.fromarray(p)) for p in greys()]), **options)


def test_sixteen_bits_of_colour_are_noted_where_the_reader_gives_eight(tmp_path: Path) -> None:
    eight = encoded(Image.fromarray(np.zeros((1, 1, 3), np.uint8)))
    assert load(write(tmp_path, [eight] * 4)).notes == ()
    assert load(write(tmp_path, [sixteen_bit_colour()] * 4)).notes[0].startswith("4 pictures of ")


def sixteen_bit_colour() -> bytes:
    """A PNG of one pixel with 16 bits in each of three channels."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" + b"\1\2" * 3))
        + chunk(b"IEND", b"")
    )


def test_pictures_of_unequal_size_are_cropped_around_their_middle() -> None:
    """A picture twice as wide as high loses a quarter of its width at either end; a square one is only resized."""
    wide = np.zeros((1, 4, 8), np.uint8)
    wide[:, :, 2:6] = 255  # what is kept
    made, notes = pictures.unified([[wide, np.full((1, 2, 2), 255, np.uint8)]], "p", {"size": 2, "fit": "crop"})
    assert made[0].shape == (2, 1, 2, 2) and made[0].min() == 0.875  # the filter sees an eighth beyond the edge
    assert (
        notes[0]
        == "the images of p were resized to 2x2 (task.data.size) and cropped around their middle (task.data.fit)"
    )
    stretched, _ = pictures.unified([[wide]], "p", {"size": 2})
    assert stretched[0].min() < 0.6
    tall, _ = pictures.unified([[wide.transpose(0, 2, 1)]], "p", {"size": [2, 2], "fit": "crop"})
    assert tall[0].min() == 0.875


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fit": "crop"}, "allowed: stretch, crop, with size: PIXELS"),
        ({"fit": "crp", "size": 3}, "(did you mean 'crop'?)"),
    ],
)
def test_how_a_size_is_reached(options: dict[str, object], says: str) -> None:
    (text,) = pictures.option_problems(options)
    assert text.startswith("task.data.fit: ") and says in text
