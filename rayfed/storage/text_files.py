"""JSON and YAML as run folders hold them: only plain values, no NaN, UTC times."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


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
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=loader) or {}
    except yaml.YAMLError as e:
        raise ValueError(f"{path}: {e}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {type(found).__name__} found, a mapping is needed")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if the file is missing, incomplete or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
