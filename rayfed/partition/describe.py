"""How different clients are: a split in numbers, for `rayfed partition`; `rayfed.report.split_pictures` draws it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import partition
from rayfed.config.schema import Public
from rayfed.errors import ConfigError
from rayfed.partition import Federation, embed, embedding
from rayfed.partition import groups as planted
from rayfed.partition.targets import by_stratum

if TYPE_CHECKING:
    from rayfed.config.schema import Config, Study
    from rayfed.data import Dataset

MOST_CLIENTS = 1000  # that all pairs are made of


@dataclass(frozen=True)
class View:
    """What the clients' training examples are counted by: counts (N, K), names of the K."""

    by: str  # class | domain | cluster
    counts: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """One split: numbers, plain values; views, that which the partition's kind decides first; arms that share it."""

    config: Config
    data: str  # the data set's name
    federation: Federation
    numbers: dict[str, Any]
    views: tuple[View, ...]
    arms: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, and what was split and how; plain values."""
        f = self.config.federation
        return {
            "arms": list(self.arms), "seed": self.config.seed, "data": self.data,
            "partition": f.partition.model_dump(mode="json"), "groups": f.groups.model_dump(mode="json"), **self.numbers,
        }  # fmt: skip

    def text(self) -> str:
        """Return it for people: a heading and a line per number."""
        n = self.numbers
        rows, sizes, classes = n["rows"], n["sizes"], n["classes_per_client"]
        unseen = f" ({n['unseen']} of them held out)" if n["unseen"] else ""
        probe = f"; public probe set {rows['probe']:,}" if rows["probe"] else ""
        few = f"; pairs of {n['compared']:,} clients drawn at random" if n["compared"] < n["clients"] else ""
        lines = [
            f"{self.title()}, seed {self.config.seed}",
            f"  clients             {n['clients']:,}{unseen}",
            f"  rows                {rows['train']:,} to train, {rows['val']:,} to validate, {rows['test']:,} to test; "
            f"{rows['nobody']:,} of {rows['data']:,} are nobody's; pooled test set {rows['pool']:,}{probe}",
            f"  size                {sizes['min']:,} to {sizes['max']:,} training examples, median {sizes['median']:g}; "
            f"Gini {sizes['gini']:.2f}",
            f"  classes             {classes['min']} to {classes['max']} of {n['classes']} per client, mean {classes['mean']:.1f}",
        ]
        for what, about in (
            ("label", "Jensen-Shannon, 0 to 1"),
            ("embedding", "in root mean square deviations of an example"),
        ):
            if (distance := n[f"{what}_distance"]) is not None:
                at_random = f"{n[f'{what}_distance_at_random']:.3f} with rows at random"
                lines += [f"  {what + ' distance':18}  {distance:.3f} ({at_random}; {about}; mean over pairs{few})"]
        if n["group_sizes"]:
            lines += [f"  planted groups      {', '.join(map(str, n['group_sizes']))} clients"]
        return "\n".join(lines)

    def title(self) -> str:
        """Return arms, data and partition in a line."""
        f = self.config.federation
        settings = f.partition.model_dump(mode="json", exclude={"kind", "min_examples"})
        words = ", ".join(f"{k} {v:g}" if isinstance(v, int | float) else f"{k} {v}" for k, v in settings.items())
        groups = f", groups by {f.groups.kind}" if f.groups.kind != "none" else ""
        arms = f"{', '.join(self.arms)}: " if self.arms else ""
        return f"{arms}{self.data}, {f.partition.kind}{f' ({words})' if words else ''}{groups}"


def describe(request: Config | Study, seed: int | None = None) -> list[Description]:
    """Return a config's split, or every split that a study's arms have; seed: default the config's, or the study's first.

    ConfigError if the data cannot be had or split, as `rayfed.partition.build` says.
    """
    from rayfed import data
    from rayfed.config.schema import Config

    if isinstance(request, Config):
        arms = {"": request}
    else:
        arms = request.arms
        seed = request.seeds[0] if seed is None else seed
    splits: dict[str, list[str]] = {}
    for arm, config in arms.items():
        splits.setdefault(_split_of(config), []).append(arm)
    known: dict[str, tuple[Dataset, embed.Embed | None]] = {}
    found, problems = [], []
    for names in splits.values():
        config = arms[names[0]] if seed is None else arms[names[0]].model_copy(update={"seed": seed})
        try:
            public = config.federation.model_dump(mode="json", include={"probe", "public", "new_classes"})
            key = f"{config.task.data.model_dump_json()} {public}"
            if key not in known:
                dataset = data.load(config.task.data, config.seed)
                dataset, targets = by_stratum(dataset, keep=False)  # as `build` does before anything is dealt
                draw = partition.draws(config.seed)("probe")
                dataset = partition.set_aside(config.federation, dataset, targets, draw)[2]
                known = {key: (dataset, _embedder(dataset, config.seed))}  # one at a time: they may be large
            found.append(_one(config, *known[key], tuple(n for n in names if n)))
        except ConfigError as e:
            problems += [p if len(splits) == 1 else f"arms.{', '.join(names)}: {p}" for p in e.problems]
    if problems:
        raise ConfigError(problems)
    return found


def _split_of(config: Config) -> str:
    """Return what decides a split besides the seed: equal for configs that share theirs."""
    f = config.federation.model_dump(mode="json", exclude={"per_round", "participation"})
    return json.dumps([config.task.data.model_dump(mode="json"), f], sort_keys=True, default=str)


def _embedder(dataset: Dataset, seed: int) -> embed.Embed | None:
    """Return the task embedding, the same that a partition of kind embedding clusters; None for data of one class."""
    train = dataset.train
    if len(np.unique(train.y)) < 2 or dataset.kind == "items":
        return None
    return embed.task(train.x, train.y, dataset.kind, partition.draws(seed)("task embedding"))


def _one(config: Config, dataset: Dataset, embedder: embed.Embed | None, arms: tuple[str, ...]) -> Description:
    """Return the description of one split; dataset: without the probe's rows."""
    federation = config.federation.model_copy(update={"probe": 0, "public": Public()})
    f = partition.build(config.model_copy(update={"federation": federation}), dataset)
    draw = partition.draws(config.seed)
    compared = np.arange(f.clients)
    if f.clients > MOST_CLIENTS:
        compared = np.sort(draw("clients compared").choice(f.clients, MOST_CLIENTS, replace=False))
    sizes, classes = f.train.sizes(), (f.class_counts > 0).sum(1)
    owned = sum(len(i.rows) for i in (f.train, f.val, f.test))
    every = len(dataset.train.y)
    if config.federation.partition.kind == "natural" and dataset.test.client is not None:
        every += int((dataset.test.client != "").sum())  # clients' own test rows
    numbers = {
        "clients": f.clients,
        "unseen": f.clients - f.population,
        "classes": f.classes,
        "rows": {
            "train": len(f.train.rows), "val": len(f.val.rows), "test": len(f.test.rows), "pool": len(f.pooled_test),
            "probe": config.federation.public_rows, "data": every, "nobody": every - owned,
        },
        "sizes": {
            "min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max()), "gini": gini(sizes),
        },
        "classes_per_client": {"min": int(classes.min()), "mean": float(classes.mean()), "max": int(classes.max())},
        **_distances(f, embedder, compared, draw("rows at random")),
        "compared": len(compared),
        "group_sizes": np.bincount(f.group[f.group >= 0]).tolist(),
    }  # fmt: skip
    return Description(config, dataset.name, f, numbers, _views(config, f, dataset), arms)


def _distances(
    f: Federation, embedder: embed.Embed | None, compared: np.ndarray, rng: np.random.Generator
) -> dict[str, float | None]:
    """Return both distances, and what they would be if clients of these sizes held these rows at random."""
    client, rows = f.train.owners(), f.train.rows
    mine = np.isin(client, compared)
    client, rows = np.searchsorted(compared, client[mine]), rows[mine]
    chance = rng.permutation(client)
    labels, e = f.arrays["y"][rows], None if embedder is None else embedder(f.arrays["x"][rows])

    def by_label(client: np.ndarray) -> float | None:
        counts = np.bincount(client * f.classes + labels, minlength=len(compared) * f.classes)
        return label_distance(counts.reshape(-1, f.classes))

    def by_embedding(client: np.ndarray) -> float | None:
        return None if e is None else embedding_distance(e, client)

    return {
        "label_distance": by_label(client), "label_distance_at_random": by_label(chance),
        "embedding_distance": by_embedding(client), "embedding_distance_at_random": by_embedding(chance),
    }  # fmt: skip


def gini(sizes: np.ndarray) -> float:
    """Return the Gini coefficient of client sizes (N,): mean |a - b| over all ordered pairs by twice the mean; 0 all equal, to 1."""
    ordered = np.sort(np.asarray(sizes, float))
    n, total = len(ordered), ordered.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total)) if total > 0 else 0.0


def label_distance(counts: np.ndarray) -> float | None:
    """Return the mean Jensen-Shannon distance (root of the divergence in bits) over all pairs of rows of counts (N, C); None if N < 2."""
    from scipy.spatial.distance import pdist

    if len(counts) < 2:
        return None
    nats = pdist(counts / counts.sum(1, keepdims=True), "jensenshannon")
    # rounding may make the divergence of almost equal rows negative, and its root no number
    return float(np.nan_to_num(nats).mean() / np.sqrt(np.log(2)))


def embedding_distance(e: np.ndarray, client: np.ndarray) -> float | None:
    """Return the mean Euclidean distance over all pairs of clients' mean embeddings, by the root mean square distance of an embedding
    from the mean of all: e (m, d), client (m,); None for one client."""
    from scipy.spatial.distance import pdist

    _, code, sizes = np.unique(client, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return None
    means = np.zeros((len(sizes), e.shape[1]))
    np.add.at(means, code, e)
    spread = float(np.sqrt(((e - e.mean(0)) ** 2).sum(1).mean()))
    return float(pdist(means / sizes[:, None]).mean()) / spread if spread > 0 else 0.0


def _views(config: Config, f: Federation, dataset: Dataset) -> tuple[View, ...]:
    p, rest = config.federation.partition, np.full(len(dataset.test.y), -1, np.int64)
    views = [View("class", f.class_counts, f.label_names)]
    if dataset.train.domain is not None and (dataset.train.domain != "").any():
        names, code, of_test = planted.domains(dataset, "task.data.domain")
        views.append(View("domain", _count(f, np.concatenate([code, of_test]), len(names)), names))
    if p.kind == "embedding" and p.embedding != "labels":
        cluster = np.concatenate([embedding.clusters(p, dataset, partition.draws(config.seed)), rest])
        views.append(View("cluster", _count(f, cluster, p.clusters), tuple(map(str, range(p.clusters)))))
    first = {"domain": "domain", "embedding": "cluster"}.get(p.kind, "class")
    return tuple(sorted(views, key=lambda v: v.by != first))


def _count(f: Federation, code: np.ndarray, k: int) -> np.ndarray:
    """Return (N, k) training examples of each code 0..k-1; code (rows,) or -1."""
    of_row = code[f.train.rows]
    known = of_row >= 0
    return np.bincount(f.train.owners()[known] * k + of_row[known], minlength=f.clients * k).reshape(f.clients, k)
