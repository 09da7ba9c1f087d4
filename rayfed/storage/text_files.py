"""JSON and YAML as run folders hold them: only plain values, no NaN, UTC times."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

CHECKSUM = "crc32"  # the entry of a JSON object that holds the checksum of the others


def timestamp() -> str:
    """Return the time as events and states hold it: UTC, ISO 8601, milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_plain(value: Any) -> Any:
    """Convert to what JSON and safe YAML hold: tuples and sets become lists, NumPy scalars numbers, other objects text."""
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """Return strict JSON, in which NaN and infinities become null, with a newline at the end."""

    def finite(v: Any) -> Any:
        if isinstance(v, dict):
            return {k: finite(x) for k, x in v.items()}
        if isinstance(v, list):
            return [finite(x) for x in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    return json.dumps(finite(to_plain(value)), indent=indent, ensure_ascii=False).encode() + b"\n"


def yaml_bytes(value: Mapping[str, Any]) -> bytes:
    """Return YAML, keys in their order."""
    import yaml

    return yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True, width=120).encode()


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; {} if the file is empty. ValueError if it holds anything else."""
    return yaml_mapping(Path(path).read_bytes(), path)


def yaml_mapping(text: str | bytes, where: str | Path) -> dict[str, Any]:
    """Return the YAML mapping of a text; {} if it is empty. ValueError, naming `where` it comes from, if it is anything else."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load(text, Loader=loader) or {}
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as e:
        raise ValueError(f"{where}: {e}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where}: {type(found).__name__} found, a mapping is needed")
    return found


def sealed_bytes(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Return a mapping as `json_bytes` does, with a checksum of it as one more entry; `load_json` compares that."""
    plain = json.loads(json_bytes(value))
    return json_bytes({**plain, CHECKSUM: _checksum(plain)}, indent)


def unseal(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object of a text, without its checksum. ValueError says what is wrong with it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"it cannot be read as JSON: {e}") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__}, an object is needed")
    if CHECKSUM in value and value.pop(CHECKSUM) != _checksum(value):
        raise ValueError("it has a wrong checksum")
    return value


def load_json(path: Path) -> dict[str, Any]:
    """Read the JSON object of a file, without its checksum. FileNotFoundError; ValueError says what is wrong with the file."""
    try:
        return unseal(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as e:
        raise ValueError(f"it cannot be read: {e.strerror or e}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object as `load_json` does; {} if the file is missing or damaged, or holds anything else."""
    try:
        return load_json(path)
    except (OSError, ValueError):
        return {}


def _checksum(plain: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())
