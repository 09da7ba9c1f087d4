"""Trees on disk: nested dicts of arrays as one safetensors file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayfed.errors import RunFailed
from rayfed.storage.atomic import durable_write
from rayfed.tree import BF16, Tree

_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64",
}  # fmt: skip
_DTYPES = {code: np.dtype(name) for name, code in _CODES.items()}


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1").replace("__metadata__", "~2")


def _unescape(key: str) -> str:
    return key.replace("~2", "__metadata__").replace("~1", "/").replace("~0", "~")


def _leaves(node: Tree, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for k, v in node.items():
            if not isinstance(k, str):
                raise TypeError(f"a tree's keys are strings; found {k!r} under {prefix or 'the root'!r}")
            yield from _leaves(v, f"{prefix}/{_escape(k)}" if prefix else _escape(k))
    else:
        yield prefix or "~", node


def _shape(node: Tree) -> Any:
    """Return the nested keys with None at the leaves: they keep the order of keys and empty dicts, which safetensors does not."""
    return {k: _shape(v) for k, v in node.items()} if isinstance(node, Mapping) else None


def save_tree(
    dir: Path | str, name: str, tree: Tree, meta: Mapping[str, Any] | None = None, *, sync: bool = True
) -> Path:
    """Write nested dicts of arrays, numbers and BF16 to `dir/name.safetensors`, atomically and (unless sync=False) durably.

    A tensor's name is its keys joined by "/" ("~1" stands for a "/" in a key, "~0" for "~"); any safetensors reader opens
    the file. meta: anything JSON can hold, read back by `load_meta`. Returns the file. OSError as the file system raises it
    (the bytes are written here and not by the library, which reports a full disk as a broken file); TypeError names a leaf
    that is not an array.
    """
    # The buffers are views: a large model is not copied in memory.
    entries: list[tuple[str, str, tuple[int, ...], np.ndarray]] = []
    for key, leaf in _leaves(tree, ""):
        bits = np.asarray(leaf.bits if isinstance(leaf, BF16) else leaf)
        code = "BF16" if isinstance(leaf, BF16) else _CODES.get(bits.dtype.name)
        if code is None or (code == "BF16" and bits.dtype != np.uint16):
            raise TypeError(f"leaf {key!r} cannot be saved: {type(leaf).__name__} of dtype {bits.dtype}")
        little = bits.astype(bits.dtype.newbyteorder("<"), order="C", copy=False)
        entries.append((key, code, bits.shape, little))
    entries.sort(key=lambda e: (-e[3].itemsize, e[0]))  # widest first keeps every tensor aligned
    extra = {"rayfed.tree": json.dumps(_shape(tree)), "rayfed.meta": json.dumps(dict(meta or {}))}
    header: dict[str, Any] = {"__metadata__": extra}
    offset = 0
    for key, code, shape, data in entries:
        header[key] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, offset + data.nbytes]}
        offset += data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = Path(dir) / f"{name}.safetensors"
    buffers = [data.reshape(-1).view(np.uint8) for *_, data in entries if data.nbytes]
    durable_write(path, len(text).to_bytes(8, "little"), text, *buffers, sync=sync)
    return path


def _entries(path: Path) -> tuple[dict[str, Any], int]:
    """Read a header: (an entry per tensor, the offset of the data)."""
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        if size > 100_000_000:
            raise ValueError("the header is too large")
        return json.loads(f.read(size)), 8 + size


def _header(path: Path) -> dict[str, str]:
    return _entries(path)[0].get("__metadata__", {})


def load_tree(dir: Path | str, name: str) -> Tree:
    """Read the tree of `dir/name.safetensors`: NumPy arrays, possibly read-only; bfloat16 as BF16.

    In a file of another program, "/" in the names of tensors means nesting. RunFailed if the file is damaged.
    """
    import safetensors

    path = Path(dir) / f"{name}.safetensors"
    data = path.read_bytes()
    try:
        flat = {key: _array(key, info) for key, info in safetensors.deserialize(data)}
        del data
        shape = _header(path).get("rayfed.tree")
        return _foreign(flat) if shape is None else _fill(json.loads(shape), "", flat)
    except (safetensors.SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise RunFailed(f"{path} is damaged: {error}") from error


def count_rows(dir: Path | str, name: str) -> int:
    """Return n of a saved tree whose leaves are (n, ...)."""
    entries = _entries(Path(dir) / f"{name}.safetensors")[0]
    return next((e["shape"][0] for key, e in entries.items() if key != "__metadata__"), 0)


def load_rows(dir: Path | str, name: str, rows: Sequence[int]) -> Tree:
    """Read only some rows of a saved tree whose leaves are (n, ...). Otherwise like `load_tree`."""
    path = Path(dir) / f"{name}.safetensors"
    try:
        entries, offset = _entries(path)
        data = np.memmap(path, np.uint8, "r")[offset:]
        shape = json.loads(entries.pop("__metadata__")["rayfed.tree"])
        flat: dict[str, Any] = {}
        for key, entry in entries.items():
            leaf = _array(key, {**entry, "data": data[slice(*entry["data_offsets"])]})
            flat[key] = BF16(leaf.bits[rows]) if isinstance(leaf, BF16) else leaf[rows]
        return _fill(shape, "", flat)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise RunFailed(f"{path} is damaged: {error}") from error


def load_meta(dir: Path | str, name: str) -> dict[str, Any]:
    """Read what `save_tree` was given as `meta`."""
    return json.loads(_header(Path(dir) / f"{name}.safetensors").get("rayfed.meta", "{}"))


def _array(key: str, info: Mapping[str, Any]) -> np.ndarray | BF16:
    """Return a tensor from its dtype, shape and bytes."""
    dtype = _DTYPES.get(info["dtype"], np.dtype(np.uint16) if info["dtype"] == "BF16" else None)
    if dtype is None:
        raise ValueError(f"tensor {key!r} has the type {info['dtype']}, which is not supported")
    found = np.frombuffer(info["data"], dtype=dtype.newbyteorder("<")).reshape(info["shape"])
    if sys.byteorder == "big":
        found = found.astype(dtype)
    return BF16(found) if info["dtype"] == "BF16" else found


def _fill(node: Any, prefix: str, flat: Mapping[str, Any]) -> Tree:
    """Put tensors into nested keys; the inverse of `_leaves`."""
    if node is None:
        return flat[prefix or "~"]
    return {k: _fill(v, f"{prefix}/{_escape(k)}" if prefix else _escape(k), flat) for k, v in node.items()}


def _foreign(flat: Mapping[str, Any]) -> Tree:
    """Nest the tensors of a file that another program wrote."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        *above, last = [_unescape(k) for k in key.split("/")]
        node = out
        for k in above:
            node = node.setdefault(k, {})
        node[last] = value
    return out
