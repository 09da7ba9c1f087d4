"""What docs/heterogeneity.md shows and measures: writes the pictures next to this file, prints the tables and puts them into the page.

python docs/pictures/make.py                  (everything, or the names of what is wanted: pictures kinds accuracy pacfl)
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import rayfed
from rayfed import data, partition
from rayfed.cluster import subspace
from rayfed.data import Dataset
from rayfed.engine.dispatch import Dispatch
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.fed import Fed
from rayfed.launch.preflight import load_request
from rayfed.metrics import ari
from rayfed.partition.describe import describe
from rayfed.report import split_pictures

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "heterogeneity.md"
SCANNERS = f"{HERE / 'make.py'}:scanners"
BALANCED = f"{HERE / 'make.py'}:self_balancing"
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
    "dirichlet, Flower's default": {"kind": "natural"},
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


def self_balancing(seed: int, alpha: float = 0.5, clients: int = CLIENTS) -> Dataset:
    """The digits with clients as Flower's `DirichletPartitioner` names them by default (`self_balancing=True`, at least 10 rows)."""
    d = data.load(load_request(config({"kind": "iid"})).task.data, seed)  # type: ignore[union-attr]
    owner = balanced(d.train.y, clients, alpha, np.random.default_rng(seed))
    return replace(
        d, name="digits, self-balancing", train=replace(d.train, client=np.array([f"{i:03}" for i in owner]))
    )


def balanced(y: np.ndarray, clients: int, alpha: float, rng: np.random.Generator, least: int = 10) -> np.ndarray:
    """Who holds each row: class after class, in the order in which the data names them, is shared out by a draw of Dir(alpha) over
    the clients that do not yet hold more than the mean; all is drawn again until everybody has `least` rows."""
    while True:
        owner, sizes = np.empty(len(y), np.int64), np.zeros(clients, np.int64)
        for c in y[np.sort(np.unique(y, return_index=True)[1])]:
            rows = np.flatnonzero(y == c)
            share = rng.dirichlet(np.full(clients, alpha)) * (sizes <= len(y) / clients)
            upto = (np.cumsum(share / share.sum())[:-1] * len(rows)).astype(np.int64)
            owner[rows] = np.searchsorted(upto, np.arange(len(rows)), side="right")
            sizes += np.bincount(owner[rows], minlength=clients)
        if sizes.min() >= least:
            return owner


def config(partition: dict[str, Any], data: Any = "digits", **federation: Any) -> dict[str, Any]:
    """A config for this split."""
    f = {"clients": CLIENTS, "partition": partition, **federation}
    return {"task": {"data": data, "model": "mlp"}, "federation": f, "method": "fedavg"}


def config_of(name: str, alpha: float) -> dict[str, Any]:
    """A config for a row of the first table."""
    kind = KINDS[name]
    if kind["kind"] == "natural":
        return config(kind, {"name": BALANCED, "alpha": alpha})
    return config({**kind, "alpha": alpha})


def measure(name: str, alpha: float, seed: int) -> dict[str, Any]:
    """The numbers that `rayfed partition` prints."""
    return describe(load_request(config_of(name, alpha)), seed)[0].numbers


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Mean ± standard deviation."""
    found = list(values)
    return f"{np.mean(found):.{digits}f} ± {np.std(found, ddof=1):.{digits}f}"


def table() -> str:
    """Means over the seeds, distances with their standard deviation."""
    lines = [
        "| partition | alpha | label distance | at random | embedding distance | at random | Gini | classes | left out |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in KINDS:
        for alpha in ALPHAS:
            found = [measure(name, alpha, s) for s in SEEDS]

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


def accuracies() -> str:
    """What FedAvg makes of the three kinds of Dirichlet split: its global model after 5 and 20 rounds of one local epoch."""
    lines = ["| dirichlet | alpha | FedAvg, round 5 | round 20 |", "|---|--:|--:|--:|"]
    for name in [n for n in KINDS if n.startswith("dirichlet")]:
        for alpha in ALPHAS[:2]:
            found: dict[int, list[float]] = {5: [], 20: []}
            for seed in SEEDS:
                with tempfile.TemporaryDirectory() as out:
                    more = {
                        "seed": seed, "rounds": 20, "evaluate": {"every": 5}, "track": [], "storage": {"path": out},
                        "local": {"epochs": 1, "batch_size": 16, "optimizer": {"lr": 0.1}},
                    }  # fmt: skip
                    rows = rayfed.run({**config_of(name, alpha), **more}, local=True).metrics().to_pylist()
                for r in found:
                    found[r].append(rows[r - 1]["accuracy/global"])
            lines.append(f"| {name.split(', ')[1]} | {alpha:g} | {' | '.join(spread(v) for v in found.values())} |")
    return "\n".join(lines)


GROUPS: dict[str, dict[str, Any]] = {  # what PACFL has to find among 16 clients
    "four rotations": {"partition": {"kind": "iid"}, "groups": {"kind": "rotation", "count": 4}},
    "three overlapping sets of classes": {
        "partition": {"kind": "dirichlet", "alpha": 0.5},
        "groups": {"kind": "classes", "count": 3, "sets": [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [6, 7, 8, 9, 0]]},
    },
    "four rotations, Dirichlet 0.5 inside": {
        "partition": {"kind": "dirichlet", "alpha": 0.5},
        "groups": {"kind": "rotation", "count": 4},
    },
}
MEASURES = {  # name -> settings of PACFL
    "`entries`, `sum` (the default)": {"angles": "entries", "measure": "sum"},
    "`entries`, `smallest` (the authors' code)": {"angles": "entries", "measure": "smallest"},
    "`principal`, `sum`": {"angles": "principal", "measure": "sum"},
    "`principal`, `smallest`": {"angles": "principal", "measure": "smallest"},
}


def found_groups(of: dict[str, Any], seed: int) -> dict[str, float]:
    """By each measure the adjusted Rand index of PACFL's clusters, as many as groups, against the planted ones."""
    more = {"seed": seed, "method": "pacfl", "resources": {"executor": "loop"}}
    c: Any = load_request({**config(**of), **more})
    split, pool = partition.build(c), LocalPool()
    here = Resident(c, split, None, "cpu")
    pool.setup("pacfl", c, split, None)
    fed = Fed(c, split, here.method, here.task, Dispatch(c, split, here.method, here.task, pool, "pacfl"))
    fed.begin(1)
    bases, truth = fed.ask(fed.method.bases, range(fed.population)).stacked("bases"), split.group[: fed.population]
    out = {}
    for name, settings in MEASURES.items():
        s = subspace.Settings(**settings)
        out[name] = ari(truth, subspace.group(subspace.proximity(bases, s), s, len(set(truth.tolist()))))
    return out


def pacfl() -> str:
    """The index, mean over seeds, for every kind of groups and measure."""
    lines = [f"| measure | {' | '.join(GROUPS)} |", f"|---{'|--:' * len(GROUPS)}|"]
    found = {g: [found_groups({**of, "clients": 16}, s) for s in SEEDS] for g, of in GROUPS.items()}
    for m in MEASURES:
        lines.append(f"| {m} | {' | '.join(spread(f[m] for f in found[g]) for g in GROUPS)} |")
    return "\n".join(lines)


def pictures() -> None:
    for name, changes in PICTURES.items():
        split_pictures.write(describe(load_request(config(**changes)), 0), HERE / f"{name}.png")
        print(f"{name}.png: {(HERE / f'{name}.png').stat().st_size / 1e3:.0f} kB")


TABLES: dict[str, Callable[[], str]] = {"kinds": table, "accuracy": accuracies, "pacfl": pacfl}


def main(wanted: list[str]) -> None:
    if "pictures" in wanted or not wanted:
        pictures()
    for name, make in TABLES.items():
        if name not in wanted and wanted:
            continue
        made = make()
        print(made)
        between = re.compile(rf"(<!-- make.py {name} -->\n).*?(\n<!-- end -->)", re.S)
        text, times = between.subn(lambda m, made=made: m[1] + made + m[2], PAGE.read_text())  # type: ignore[misc]
        if times != 1:
            raise SystemExit(f"{PAGE} has no place for the table {name}")
        PAGE.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
