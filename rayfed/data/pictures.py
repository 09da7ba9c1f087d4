"""Pictures as arrays (n, C, H, W) float32: raw bytes, picture files of any mode, and arrays of numbers.

What a value means is read from its type, never from the largest one that occurs: 8 bits are divided by 255, 16 bits by 65,535,
all other numbers stay as they are. One form is decided over the training and the test part: grey unless a picture has colour,
without transparency unless a picture has some.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.data.columns import kind_of
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

OPTIONS = ("size", "fit", "channels", "scale")
FITS = ("stretch", "crop")  # how a picture of other proportions comes to a size
CHANNELS = {1: "grey", 2: "grey with transparency", 3: "colour", 4: "colour with transparency"}
TOP = {"uint8": 255, "uint16": 65535}  # what stands for 1
LARGEST = 8192  # pixels of a side that pictures can be resized to
PNG = b"\x89PNG\r\n\x1a\n"
Pictures = Sequence[np.ndarray]  # (C, H, W) each


def option_problems(o: dict[str, Any]) -> list[str]:
    """Return what is wrong with the options of pictures."""
    out = []
    size = o.get("size", 1)
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(isinstance(s, int) and not isinstance(s, bool) and 0 < s <= LARGEST for s in sides):
        out.append(f"task.data.size: {size!r} found, allowed: pixels of a side, or [height, width], 1 to {LARGEST}")
    if o.get("fit", FITS[0]) not in FITS or ("fit" in o and "size" not in o):
        needs = "" if "size" in o else ", with size: PIXELS"
        out.append(
            f"task.data.fit: {o['fit']!r} found{nearest(str(o['fit']), FITS)}, allowed: {', '.join(FITS)}{needs}"
        )
    if ("channels" in o and o["channels"] not in (1, 3)) or isinstance(o.get("channels"), bool):
        out.append(f"task.data.channels: {o['channels']!r} found, allowed: 1 (grey), 3 (colour)")
    scale = o.get("scale", 1)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        out.append(f"task.data.scale: {scale!r} found, allowed: a number > 0, by which values are divided")
    return out


def of_bytes(column: pa.ChunkedArray, shape: Sequence[int], file: str) -> np.ndarray:
    """Return (n, C, H, W) uint8 from raw bytes H x W x C; shape: (H, W, C)."""
    h, w, c = shape
    pictures = column.to_pylist()
    if any(len(p) != h * w * c for p in pictures):
        about = next((p for p in pictures if len(p) != h * w * c), b"")
        hint = "; they are encoded pictures: leave `shape` out" if _encoded(about) else ""
        raise ConfigError(f"task.data.shape: images of {file} do not have {h} x {w} x {c} bytes each{hint}")
    return np.frombuffer(b"".join(pictures), np.uint8).reshape(-1, h, w, c).transpose(0, 3, 1, 2)


def _encoded(start: bytes) -> bool:
    return start.startswith((PNG, b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*"))


def of_files(column: pa.ChunkedArray, file: str) -> tuple[Pictures, list[str]]:
    """Return (the pictures of encoded bytes, or of {bytes, path}, notes)."""
    from PIL import Image

    out, reduced = [], 0
    raw = "" if is_file(column.type) else "; raw bytes need shape: [height, width, channels]"
    for row, value in enumerate(column.to_pylist()):
        value = {"bytes": value} if isinstance(value, bytes) else value
        data, path = value.get("bytes"), value.get("path")
        name = path if data is None and path else f"row {row} of {file}"
        try:
            if data is None:
                data = Path(str(path)).read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                out.append(_values(image))
        except Exception as e:  # with a broken file Pillow's readers raise errors of any kind
            raise ConfigError(
                f"task.data.image: {name} cannot be read as a picture: {type(e).__name__}: {_line(e)}{raw}"
            ) from None
        reduced += data.startswith(PNG) and data[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06")
    note = f"{reduced:,} pictures of {file} have 16 bits in each of several channels and were read with 8 (Pillow's)"
    return out, [note] if reduced else []


def _line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or ["no reason given"])[0][:200]


def _values(image: Any) -> np.ndarray:
    """Return (C, H, W) in the picture's own depth, turned upright; a palette's colours in place of its numbers."""
    from PIL import ImageOps

    png = image.format == "PNG"
    image = ImageOps.exif_transpose(image)
    clear = "transparency" in image.info or image.mode in ("PA", "RGBa", "La")
    if image.mode in ("P", "PA"):
        a = np.asarray(image.convert("RGBA" if clear else "RGB"))
        if (a[..., :3] == a[..., :1]).all():  # a palette of greys
            a = a[..., [0, 3]] if clear else a[..., :1]
    elif image.mode in ("L", "La") and clear:
        a = np.asarray(image.convert("LA"))
    elif image.mode in ("RGB", "RGBa") and clear:
        a = np.asarray(image.convert("RGBA"))
    elif image.mode in ("1", "L", "LA", "RGB", "RGBA", "I", "F") or image.mode.startswith("I;16"):
        a = np.asarray(image)
        if image.mode == "I" and png:  # older Pillows read 16 bits so
            a = a.astype(np.uint16)
    else:
        a = np.asarray(image.convert("RGB"))
    a = a.astype(a.dtype.newbyteorder("=")) if a.ndim == 3 else a.astype(a.dtype.newbyteorder("="))[..., None]
    if a.shape[-1] in (2, 4) and (a[..., -1] == 255).all():  # opaque
        a = a[..., :-1]
    return np.ascontiguousarray(a.transpose(2, 0, 1))


def of_arrays(column: pa.ChunkedArray, name: str, file: str) -> Pictures:
    """Return pictures from nested lists of numbers, (H, W), (H, W, C) or (C, H, W) each, in the numbers' own type."""
    import pyarrow as pa

    chunks = [c.storage if isinstance(c, pa.ExtensionArray) else c for c in column.chunks]
    if not chunks:
        return []
    a = pa.concat_arrays(chunks)
    where = f"task.data.image: column {name!r} of {file}"
    whole = _stacked(a)
    if whole is None:  # of several sizes
        kind = leaf(a.type).to_pandas_dtype()
        try:
            arrays = [np.array(v, kind) for v in a.to_pylist()]
        except (TypeError, ValueError):
            raise ConfigError(
                f"{where} has rows that are no arrays: lines of different lengths, or missing values"
            ) from None
    else:
        arrays = list(whole)
    if wrong := next((x.shape for x in arrays if x.ndim not in (2, 3) or not x.size), None):
        raise ConfigError(
            f"{where} holds arrays of shape {wrong}, allowed: (height, width), with channels last or first"
        )
    return [_channels_first(x) for x in arrays]


def leaf(of: pa.DataType) -> pa.DataType:
    """Return the type of the values in nested lists."""
    import pyarrow as pa

    if isinstance(of, pa.BaseExtensionType):
        of = of.storage_type
    while kind_of(of) == "lists":
        of = of.value_type
    return of


def _stacked(a: pa.Array) -> np.ndarray | None:
    """Return the rows as one array where all have one shape and nothing is missing."""
    import pyarrow.compute as pc

    shape = [len(a)]
    while kind_of(a.type) == "lists":
        lengths = pc.unique(pc.list_value_length(a)).to_pylist()
        if a.null_count or len(lengths) != 1 or not lengths[0]:
            return None
        shape.append(lengths[0])
        a = a.flatten()
    return None if a.null_count else a.to_numpy(zero_copy_only=False).reshape(shape)


def _channels_first(x: np.ndarray) -> np.ndarray:
    if x.ndim == 2:
        return x[None]
    first = x.shape[0] in (1, 3) and x.shape[2] not in (1, 3, 4)  # channels come first already
    return x if first else x.transpose(2, 0, 1)


def unified(parts: Sequence[Pictures], name: str, o: dict[str, Any]) -> tuple[list[np.ndarray], list[str]]:
    """Return ([(n, C, H, W) float32 per part], notes) in one form.

    name: of the data set; o: the options `size`, `fit`, `channels`, `scale`. ConfigError for several sizes without `size`, for whole
    numbers mixed with fractions, and for values that are not finite.
    """
    every = [p for part in parts for p in part]
    found, notes = {p.shape[0] for p in every}, []
    wanted = o.get("channels") or (3 if found & {3, 4} else 1) + (1 if found & {2, 4} else 0)
    if found <= CHANNELS.keys() and found != {wanted}:
        changed = sum(p.shape[0] != wanted for p in every)
        notes.append(f"{changed:,} of {len(every):,} images of {name} were made {CHANNELS[wanted]} as the others are")
        if "channels" in o:
            notes[-1] = (
                f"{changed:,} of {len(every):,} images of {name} were made {CHANNELS[wanted]} (task.data.channels)"
            )
        parts = [[_with_channels(p, wanted) for p in part] for part in parts]
    kinds = {p.dtype.name for p in every}
    if len(kinds) > 1 and any(k.startswith("float") for k in kinds):
        raise ConfigError(f"task.data.image: the images of {name} are {' and '.join(sorted(kinds))}; allowed: one type")
    if len(kinds) > 1:  # 8 bits and 16 bits: each divided by its own
        notes.append(f"the images of {name} are {' and '.join(sorted(kinds))}, each divided by what its type says")
    kind, scale = kinds.pop() if len(kinds) == 1 else "", o.get("scale")
    shapes = sorted({p.shape for part in parts for p in part})
    to = _sides(o["size"]) if "size" in o else None
    resized = to is not None and {s[1:] for s in shapes} != {to}
    if resized or not kind:
        parts = [[_scaled(p, scale) for p in part] for part in parts]
        scale = 1
    if resized and to is not None:
        crop = o.get("fit") == "crop"
        parts = [[_resized(p, to, crop) for p in part] for part in parts]
        how = " and cropped around their middle (task.data.fit)" if crop else ""
        notes.append(f"the images of {name} were resized to {to[0]}x{to[1]} (task.data.size){how}")
    elif len(shapes) > 1:
        shown = ", ".join("x".join(map(str, s[1:] if s[0] == shapes[0][0] else s)) for s in shapes[:3])
        raise ConfigError(
            f"task.data.image: the images of {name} must have one size; found {len(shapes)}: {shown} (resize them with size: PIXELS "
            "or size: [HEIGHT, WIDTH])"
        )
    empty = np.zeros((0, *next((p.shape for part in parts for p in part), (1, 1, 1))), np.float32)
    arrays = [np.stack(list(part)) if len(part) else empty for part in parts]
    made = scaled(arrays, name, scale)
    return made, [*notes, *([] if "scale" in o else type_notes(made, kind, name))]


def _sides(size: int | list[int]) -> tuple[int, int]:
    """Return (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _with_channels(p: np.ndarray, wanted: int) -> np.ndarray:
    """Return a picture with as many channels: grey is repeated, colour weighed as Pillow does, what is not transparent opaque."""
    if p.shape[0] == wanted:
        return p
    body, clear = (p[:-1], p[-1:]) if p.shape[0] in (2, 4) else (p, None)
    if wanted >= 3 and len(body) == 1:
        body = np.repeat(body, 3, 0)
    elif wanted < 3 and len(body) == 3:
        grey = np.einsum("c,chw->hw", np.array([0.299, 0.587, 0.114]), body.astype(np.float64))[None]
        body = (grey if p.dtype.kind == "f" else np.rint(grey)).astype(p.dtype)
    if wanted in (2, 4):
        opaque = 1 if p.dtype.kind in "fb" else TOP.get(p.dtype.name, np.iinfo(p.dtype).max)
        body = np.concatenate([body, np.full_like(body[:1], opaque) if clear is None else clear])
    return body


def _scaled(p: np.ndarray, scale: float | None) -> np.ndarray:
    """Return an array as contiguous float32, divided by `scale`, else by what its type says."""
    with np.errstate(over="ignore"):
        x: np.ndarray = np.ascontiguousarray(p).astype(np.float32)
    x /= np.float32(scale or TOP.get(p.dtype.name, 1))
    return x


def _resized(x: np.ndarray, to: tuple[int, int], crop: bool = False) -> np.ndarray:
    """Return a float32 picture of another size: each channel by Pillow's antialiased bilinear filter.

    crop: keep its proportions and cut off what is too much of one side, as much at either end.
    """
    from PIL import Image

    box = None
    if crop:
        h, w = x.shape[1:]
        by = min(h / to[0], w / to[1])  # pixels of the picture for one of the result
        top, left = (h - by * to[0]) / 2, (w - by * to[1]) / 2
        box = (left, top, left + by * to[1], top + by * to[0])
    channels = [Image.fromarray(c).resize((to[1], to[0]), Image.Resampling.BILINEAR, box) for c in x]
    return np.stack([np.asarray(c, np.float32) for c in channels])


def scaled(arrays: Sequence[np.ndarray], name: str, scale: float | None = None) -> list[np.ndarray]:
    """Return the same pictures as contiguous float32, divided by `scale`, else by what their type says.

    ConfigError for values that are not finite, or that float32 cannot hold.
    """
    out = [_scaled(a, scale) for a in arrays]
    for x in out:
        finite = np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
        if not finite.all():
            raise ConfigError(
                f"task.data.image: {int((~finite).sum())} images of {name} hold NaN, infinite or too large values (first: row "
                f"{int(np.argmin(finite))}); allowed: finite numbers"
            )
    return out


def type_notes(made: Sequence[np.ndarray], kind: str, name: str) -> list[str]:
    """Return what a reader should know of how values of type `kind` were taken; made: the pictures as they are used."""
    if kind == "uint16":
        return [f"the images of {name} are uint16 and were divided by 65,535"]
    full = [x for x in made if x.size]
    if not kind or kind in TOP or not full:
        return []
    low, high = min(float(x.min()) for x in full), max(float(x.max()) for x in full)
    if low >= 0 and high <= 1:
        return []
    return [
        f"the images of {name} are {kind} from {low:g} to {high:g} and are used as they are (task.data.scale divides them)"
    ]


def is_bytes(of: pa.DataType) -> bool:
    """Return whether a column holds bytes: raw ones, or encoded pictures."""
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_binary(of) or pa.types.is_binary(of) or pa.types.is_large_binary(of))


def is_file(of: pa.DataType) -> bool:
    """Return whether a column holds encoded pictures as {bytes, path}."""
    import pyarrow as pa

    return bool(pa.types.is_struct(of)) and {f.name for f in of} == {"bytes", "path"}


def is_array(of: pa.DataType) -> bool:
    """Return whether a column holds nested lists of numbers."""
    import pyarrow as pa

    inner = leaf(of)
    numbers = pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)
    return inner != of and bool(numbers)
