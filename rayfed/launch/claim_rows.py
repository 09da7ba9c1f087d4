"""Scores by test row, arm and seed, in a few bytes of a claim's entry: a bit where they are right or wrong, else float32.

    {"splits": {KEY: {"rows": TEXT, "sizes": TEXT}}, "scores": {"accuracy/global @10": {ARM: {SEED: "KEY bits TEXT"}}}}

TEXT is base64 of zlib: of the differences of whole numbers (little-endian int32), of `numpy.packbits`, or of little-endian float32.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayfed.report.crossed import RowValues, row_values

if TYPE_CHECKING:
    import numpy as np

    from rayfed.report.subject import RunRecord


def pack(runs: Mapping[str, Sequence[RunRecord]], judged: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """Return the scores by row of these metrics at these rounds, of all runs that have kept them."""
    import numpy as np

    splits: dict[str, dict[str, str]] = {}
    scores: dict[str, dict[str, dict[str, str]]] = {}
    for metric, at in dict.fromkeys(judged):
        for arm, found in runs.items():
            for run in found:
                by_row = row_values(run, metric, at)
                if by_row is None:
                    continue
                split = {name: _text(np.diff(getattr(by_row, name), prepend=0), "<i4") for name in ("rows", "sizes")}
                key = hashlib.sha256(f"{split['rows']} {split['sizes']}".encode()).hexdigest()[:8]
                splits[key] = split
                plain = bool(np.isin(by_row.values, (0, 1)).all())
                text = _text(np.packbits(by_row.values > 0), "u1") if plain else _text(by_row.values, "<f4")
                by_arm = scores.setdefault(f"{metric} @{at}", {}).setdefault(arm, {})
                by_arm[str(run.seed)] = f"{key} {'bits' if plain else 'float32'} {text}"
    return {"splits": splits, "scores": scores} if scores else {}


def unpack(packed: Mapping[str, Any], metric: str, at: int, arm: str) -> dict[str, RowValues]:
    """Return seed -> an arm's scores by row, of what `pack` gave."""
    import numpy as np

    out = {}
    for seed, found in packed.get("scores", {}).get(f"{metric} @{at}", {}).get(arm, {}).items():
        key, kind, text = found.split(" ")
        rows, sizes = (np.cumsum(_array(packed["splits"][key][n], "<i4").astype(np.int64)) for n in ("rows", "sizes"))
        bits = kind == "bits"
        values = np.unpackbits(_array(text, "u1"), count=len(rows)) if bits else _array(text, "<f4")
        out[seed] = RowValues.of(metric, rows, values, sizes)
    return out


def _text(numbers: np.ndarray, kind: str) -> str:
    return base64.b64encode(zlib.compress(numbers.astype(kind).tobytes(), 9)).decode()


def _array(text: str, kind: str) -> np.ndarray:
    import numpy as np

    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)
