"""What docs/heterogeneity.md shows and measures: writes the pictures beside this file, prints the table and puts it into the page.

python docs/pictures/make.py
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rayfed import data
from rayfed.data import Dataset
from rayfed.launch.preflight import load_request
from rayfed.partition.describe import describe
from rayfed.report import split_pictures

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "heterogeneity.md"
SCANNERS = f"{HERE / 'make.py'}:scanners"
CLIENTS = 20
SEEDS = range(5)
ALPHAS = (0.1, 0.5, 1, 10)

PICTURES: dict[str, dict[str, Any]] = {  # file -> overrides of BASE
    "iid": {"partition": {"kind": "iid"}},
    "dirichlet-clients": {"partition": {"kind": "dirichlet", "alpha": 0.3}},
    "dirichlet-labels": {"partition": {"kind": "dirichlet", "alpha": 0.3, "over": "labels"}},
    "shards": {"partition": {"kind": "shards", "per_client": 2}},
    "quantity": {"partition": {"kind": "quantity", "alpha": 0.3}},
    "longtail": {"partition": {"kind": "longtail", "alpha": 1, "imbalance": 20}},
    "embedding": {"partition": {"kind": "embedding", "alpha": 1, "fallback": "columns"}},
    "domain": {"partition": {"kind": "domain", "mixed": 0.1}, "data": SCANNERS},
    "natural": {
        "partition": {"kind": "natural"},
        "data": {"name": "synthetic:logistic", "clients": 40, "examples": 3000},
    },
    "groups-classes": {"partition": {"kind": "iid"}, "groups": {"kind": "classes", "count": 3}},
    "groups-domain": {"partition": {"kind": "dirichlet", "alpha": 1}, "groups": {"kind": "domain"}, "data": SCANNERS},
}
KINDS: dict[str, dict[str, Any]] = {
    "dirichlet, over clients": {"kind": "dirichlet"},
    "dirichlet, over labels": {"kind": "dirichlet", "over": "labels"},
    "quantity": {"kind": "quantity"},
    "embedding": {"kind": "embedding", "fallback": "columns"},
}


def scanners(seed: int) -> Dataset:
    """The digits as three scanners might give them: as they are, inverted, and faint with noise."""
    d, rng = data.load(load_request(config({"kind": "iid"})).task.data, seed), np.random.default_rng(seed)  # type: ignore[union-attr]

    def scan(part: data.Part) -> data.Part:
        which = rng.choice(3, len(part.y), p=[0.5, 0.3, 0.2])
        faint = np.clip(0.4 * part.x + 0.2 * rng.random(part.x.shape, dtype=np.float32), 0, 1)
        x = np.select([(which == k)[:, None, None, None] for k in (0, 1)], [part.x, 1 - part.x], faint)
        return replace(part, x=x, domain=np.array(["plain", "inverted", "faint"])[which])

    return replace(d, name="digits of three scanners", train=scan(d.train), test=scan(d.test))


def config(partition: dict[str, Any], data: Any = "digits", **federation: Any) -> dict[str, Any]:
    """A config for this split."""
    f = {"clients": CLIENTS, "partition": partition, **federation}
    return {"task": {"data": data, "model": "mlp"}, "federation": f, "method": "fedavg"}


def measure(kind: dict[str, Any], alpha: float, seed: int) -> dict[str, Any]:
    """The numbers that `rayfed partition` prints."""
    return describe(load_request(config({**kind, "alpha": alpha})), seed)[0].numbers


def table() -> str:
    """Means over the seeds, distances with their standard deviation."""
    lines = [
        "| partition | alpha | label distance | at random | embedding distance | at random | Gini | classes | left out |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, kind in KINDS.items():
        for alpha in ALPHAS:
            found = [measure(kind, alpha, s) for s in SEEDS]

            def mean(*keys: str, digits: int = 2, sd: bool = False, found: list[dict[str, Any]] = found) -> str:
                values: list[Any] = found
                for k in keys:
                    values = [v[k] for v in values]
                return f"{np.mean(values):.{digits}f}" + (f" ± {np.std(values, ddof=1):.{digits}f}" if sd else "")

            cells = [
                name, f"{alpha:g}", mean("label_distance", sd=True), mean("label_distance_at_random"),
                mean("embedding_distance", sd=True), mean("embedding_distance_at_random"), mean("sizes", "gini"),
                mean("classes_per_client", "mean", digits=1), mean("rows", "nobody", digits=0),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    for name, changes in PICTURES.items():
        split_pictures.write(describe(load_request(config(**changes)), 0), HERE / f"{name}.png")
        print(f"{name}.png: {(HERE / f'{name}.png').stat().st_size / 1e3:.0f} kB")
    made = table()
    print(made)
    between = re.compile(r"(<!-- make.py -->\n).*?(\n<!-- end -->)", re.S)
    text, times = between.subn(lambda m: m[1] + made + m[2], PAGE.read_text())
    if times != 1:
        raise SystemExit(f"{PAGE} has no place for the table")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
