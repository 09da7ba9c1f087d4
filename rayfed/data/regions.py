"""Masks and boxes of pictures in a table's columns, checked against the pictures' own sizes; sentences name file and row."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.data import columns, pictures
from rayfed.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

OPTIONS = ("masks", "boxes")
Sizes = Sequence[tuple[int, int]]  # (height, width) of each picture as it is stored


def option_problems(o: dict[str, Any]) -> list[str]:
    """Return what is wrong with these options beside others."""
    out = []
    given = [n for n in OPTIONS if o.get(n)]
    if given and o.get("fit") == "crop":
        out.append(f"task.data.fit: crop found, which cuts what {given[0]} are of; allowed with {given[0]}: stretch")
    if o.get("boxes") and (other := [n for n in ("label", "labels", "target") if o.get(n)]):
        out.append(
            f"task.data.{other[0]}: boxes and {other[0]} are both set, and boxes have their own classes; choose one"
        )
    return out


def type_problem(option: str, field: pa.Field, file: str) -> str | None:
    """Return why a column of this type does not hold masks, or boxes."""
    where = f"task.data.{option}: column {field.name!r} of {file} is {field.type}, allowed: "
    if option == "boxes":
        return None if pictures.is_array(field.type) else where + "lists of [class, left, top, right, bottom]"
    fine = pictures.is_bytes(field.type) or pictures.is_file(field.type) or pictures.is_array(field.type)
    return None if fine else where + "encoded pictures, or arrays of whole numbers"


def masks(column: pa.ChunkedArray, name: str, file: str, sizes: Sizes, to: tuple[int, int]) -> np.ndarray:
    """Return masks (n, *to) int64, resized to the nearest pixel. ConfigError for the first one that is not of its picture's size."""
    column = columns.plain(column, name, file, "masks")
    out = np.zeros((len(column), *to), np.int64)
    for row, (value, size) in enumerate(zip(column.to_pylist(), sizes, strict=True)):
        where = f"task.data.masks: row {row} of {file}"
        made = _values(value, where)
        if made.shape != size:
            raise ConfigError(
                f"{where} has a mask of shape {made.shape}, its picture is {size[0]}x{size[1]}; allowed: one value a pixel"
            )
        out[row] = made if size == to else _nearest(made, to)
    return out


def _values(value: Any, where: str) -> np.ndarray:
    """Return the whole numbers of one mask: of an encoded picture its own numbers (a palette's indices), or of nested lists."""
    from PIL import Image

    if isinstance(value, bytes | dict):
        value = {"bytes": value} if isinstance(value, bytes) else value
        try:
            data = value.get("bytes") or Path(str(value.get("path"))).read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                made = np.asarray(image)
        except Exception as e:  # with a broken file Pillow's readers raise errors of any kind
            raise ConfigError(f"{where} cannot be read as a picture: {type(e).__name__}: {e}") from None
    else:
        try:
            made = np.array(value, np.float64)
        except (TypeError, ValueError):
            raise ConfigError(f"{where} holds no mask: nothing, or lines of different lengths") from None
    if made.ndim == 3 and made.shape[-1] == 1:
        made = made[..., 0]
    if made.ndim != 2 or not (np.floor(made) == made).all():
        raise ConfigError(
            f"{where} has a mask of shape {made.shape}, allowed: (height, width) of whole numbers, no colours"
        )
    return made.astype(np.int64)


def _nearest(a: np.ndarray, to: tuple[int, int]) -> np.ndarray:
    """Return (H, W) as (h, w): of each new pixel the value at its centre."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(to, a.shape, strict=True))
    return np.asarray(a[np.ix_(rows, columns)])


def boxes(column: pa.ChunkedArray, name: str, file: str, sizes: Sizes, to: tuple[int, int]) -> list[np.ndarray]:
    """Return each picture's boxes (m, 5), class, left, top, right, bottom in pixels of pictures of size `to`. ConfigError for the first
    one that is no box, or is outside of its picture."""
    column = columns.plain(column, name, file, "boxes")
    out = []
    for row, (value, (h, w)) in enumerate(zip(column.to_pylist(), sizes, strict=True)):
        where = f"of row {row} of {file}"
        try:
            made = np.array(value or [], np.float64).reshape(-1, 5) if value else np.zeros((0, 5))
        except (TypeError, ValueError):
            raise ConfigError(
                f"task.data.boxes: {value} {where} found, allowed: lists of [class, left, top, right, bottom]"
            ) from None
        kind, left, top, right, bottom = made.T
        fine = (left >= 0) & (left < right) & (right <= w) & (top >= 0) & (top < bottom) & (bottom <= h)
        fine &= (kind >= 0) & (kind == np.floor(kind))
        if not fine.all():
            which = int(np.argmin(fine))
            raise ConfigError(
                f"task.data.boxes: box {which} {where} is {made[which].tolist()}, allowed: a class from 0, "
                f"0 <= left < right <= {w}, 0 <= top < bottom <= {h}"
            )
        out.append(made * np.array([1, to[1] / w, to[0] / h, to[1] / w, to[0] / h]))
    return out


def padded(each: Sequence[np.ndarray], most: int) -> np.ndarray:
    """Return boxes (n, most, 5) float32 of lists of them, class -1 where there is none."""
    out = np.full((len(each), most, 5), -1, np.float32)
    for row, of in zip(out, each, strict=True):
        row[: len(of)] = of
    return out
