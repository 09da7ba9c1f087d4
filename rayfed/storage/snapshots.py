"""Trees and snapshots on disk.

A tree is one safetensors file. A snapshot is a folder that counts only once its `manifest.json`, written last, agrees
with every file in it; temporaries start with a dot.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayfed.errors import RunFailed
from rayfed.storage.atomic import durable_write, remove, sync_dir
from rayfed.tree import BF16, Tree

_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64",
}  # fmt: skip
_DTYPES = {code: np.dtype(name) for name, code in _CODES.items()}

# -- trees -------------------------------------------------------------------------------------------------------------


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
    """Nested keys with null at the leaves: keeps the order of keys and empty dicts, which safetensors does not."""
    return {k: _shape(v) for k, v in node.items()} if isinstance(node, Mapping) else None


def save_tree(
    dir: Path | str, name: str, tree: Tree, meta: Mapping[str, Any] | None = None, *, sync: bool = True
) -> Path:
    """Write nested dicts of arrays, numbers and BF16 to `dir/name.safetensors`, atomically and, but for `sync=False`, durably.

    Names are the keys joined by "/" ("~1" stands for a "/" inside a key, "~0" for "~"); any safetensors reader opens
    the file. `meta`: anything JSON can hold, read back by `load_meta`. OSError as the file system raises it (a full
    disk must be told from a broken file, so the bytes are written here and not by the library); TypeError names a leaf
    that is no array.
    """
    # Written as a stream of views: a large model is not copied in memory.
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
    at = 0
    for key, code, shape, data in entries:
        header[key] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + data.nbytes]}
        at += data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = Path(dir) / f"{name}.safetensors"
    buffers = [data.reshape(-1).view(np.uint8) for *_, data in entries if data.nbytes]
    durable_write(path, len(text).to_bytes(8, "little"), text, *buffers, sync=sync)
    return path


def _entries(path: Path) -> tuple[dict[str, Any], int]:
    """(what the header says of each tensor, where the data begins)."""
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        if size > 100_000_000:
            raise ValueError("the header is too large")
        return json.loads(f.read(size)), 8 + size


def _header(path: Path) -> dict[str, str]:
    return _entries(path)[0].get("__metadata__", {})


def load_tree(dir: Path | str, name: str) -> Tree:
    """The tree in `dir/name.safetensors`: NumPy arrays, maybe read-only; bfloat16 as BF16.

    A file of another program gives its tensors with "/" in names as nesting. RunFailed if the file is damaged.
    """
    import safetensors

    path = Path(dir) / f"{name}.safetensors"
    data = path.read_bytes()
    try:
        flat = {key: _array(path, key, info) for key, info in safetensors.deserialize(data)}
        del data
        shape = _header(path).get("rayfed.tree")
        return _foreign(flat) if shape is None else _fill(json.loads(shape), "", flat)
    except (safetensors.SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise RunFailed(f"{path} is damaged: {error}") from error


def count_rows(dir: Path | str, name: str) -> int:
    """n of a saved tree whose leaves are (n, ...)."""
    entries = _entries(Path(dir) / f"{name}.safetensors")[0]
    return next((e["shape"][0] for key, e in entries.items() if key != "__metadata__"), 0)


def load_rows(dir: Path | str, name: str, rows: Sequence[int]) -> Tree:
    """Some rows of a saved tree whose leaves are (n, ...), read without the others. Else as `load_tree`."""
    path = Path(dir) / f"{name}.safetensors"
    try:
        entries, at = _entries(path)
        data = np.memmap(path, np.uint8, "r")[at:]
        shape = json.loads(entries.pop("__metadata__")["rayfed.tree"])
        flat = {k: _array(path, k, {**e, "data": data[slice(*e["data_offsets"])]}) for k, e in entries.items()}
        some = {k: BF16(x.bits[rows]) if isinstance(x, BF16) else x[rows] for k, x in flat.items()}
        return _fill(shape, "", some)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise RunFailed(f"{path} is damaged: {error}") from error


def load_meta(dir: Path | str, name: str) -> dict[str, Any]:
    """What `save_tree` was given as `meta`."""
    return json.loads(_header(Path(dir) / f"{name}.safetensors").get("rayfed.meta", "{}"))


def _array(path: Path, key: str, info: Mapping[str, Any]) -> np.ndarray | BF16:
    dtype = _DTYPES.get(info["dtype"], np.dtype(np.uint16) if info["dtype"] == "BF16" else None)
    if dtype is None:
        raise ValueError(f"tensor {key!r} has the type {info['dtype']}, which is not supported")
    found = np.frombuffer(info["data"], dtype=dtype.newbyteorder("<")).reshape(info["shape"])
    if sys.byteorder == "big":
        found = found.astype(dtype)
    return BF16(found) if info["dtype"] == "BF16" else found


def _fill(node: Any, prefix: str, flat: Mapping[str, Any]) -> Tree:
    if node is None:
        return flat[prefix or "~"]
    return {k: _fill(v, f"{prefix}/{_escape(k)}" if prefix else _escape(k), flat) for k, v in node.items()}


def _foreign(flat: Mapping[str, Any]) -> Tree:
    out: dict[str, Any] = {}
    for key, value in flat.items():
        *above, last = [_unescape(k) for k in key.split("/")]
        node = out
        for k in above:
            node = node.setdefault(k, {})
        node[last] = value
    return out


# -- snapshots ---------------------------------------------------------------------------------------------------------


def folder_name(round: int) -> str:
    return f"round-{round:06d}"


def stage(snapshots: Path, round: int, fence: int, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write a snapshot into a hidden folder, then the manifest; durable, but not yet a snapshot."""
    snapshots.mkdir(exist_ok=True)
    hidden = snapshots / f".{folder_name(round)}-{fence}"
    remove(hidden)
    hidden.mkdir()
    try:
        fill(hidden)
        files = {}
        for path in sorted(hidden.rglob("*")):
            if path.is_dir():
                sync_dir(path)
            else:
                fd = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(fd)  # the callback may have used plain writes
                finally:
                    os.close(fd)
                files[path.relative_to(hidden).as_posix()] = {"size": path.stat().st_size, "crc32": _crc(path)}
        manifest = {"fence": fence, "round": round, "rows": round, "time": time.time(), "files": files}
        durable_write(hidden / "manifest.json", json.dumps(manifest, indent=1).encode())
    except Exception:
        remove(hidden)
        raise
    return hidden


def publish(hidden: Path, round: int) -> Path:
    """The staged folder becomes `round-000005`: the rename is the commit."""
    target = hidden.parent / folder_name(round)
    if target.exists():  # only what a rewind found damaged can stand here
        set_aside(target)
    os.replace(hidden, target)
    sync_dir(hidden.parent)
    return target


def set_aside(path: Path) -> Path:
    """Rename a snapshot that cannot be used to `.damaged-...`, for its owner to look at."""
    aside = path.parent / f".damaged-{path.name}"
    remove(aside)
    os.replace(path, aside)
    return aside


def listed(snapshots: Path) -> list[tuple[int, Path]]:
    """(round, folder) of everything named like a snapshot, newest first."""
    found = []
    for path in snapshots.glob("round-*") if snapshots.is_dir() else ():
        digits = path.name.removeprefix("round-")
        if digits.isdigit():
            found.append((int(digits), path))
    return sorted(found, reverse=True)


def damage(path: Path, round: int) -> str | None:
    """What is wrong with a snapshot, None if it is complete: every file has the size and checksum of the manifest."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["round"] != round:
            return f"its manifest is of round {manifest['round']}"
        for name, want in manifest["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != want["size"]:
                return f"{name} has {file.stat().st_size} bytes instead of {want['size']}"
            if _crc(file) != want["crc32"]:
                return f"{name} has a wrong checksum"
    except FileNotFoundError:
        return "it has no manifest.json"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {error}"
    return None


def prune(snapshots: Path, keep: int) -> None:
    """Delete all but the newest `keep` (at least one) snapshots. What cannot be deleted stays; that harms nothing."""
    for _, path in listed(snapshots)[max(1, keep) :]:
        hidden = snapshots / f".old-{path.name}"
        try:
            os.replace(path, hidden)  # first out of sight: a half deleted folder must not look like a snapshot
        except OSError:
            continue
        remove(hidden)


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
