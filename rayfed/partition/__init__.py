"""Who holds what: from a data set and `federation` to index arrays, in pure NumPy, decided by the seed alone.

One file per partition kind. Each gives an `Owned`: the client of every row. The rest (planted groups' transforms, each
client's train, val and test rows, the pooled test set) is the same for all kinds and happens here.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import attack, keys
from rayfed.config import phases
from rayfed.data import OTHER_FORMS, class_texts, modalities
from rayfed.errors import ConfigError, nearest
from rayfed.lazy import make_callable
from rayfed.models import folder
from rayfed.partition import groups as planted
from rayfed.partition import owners, retained
from rayfed.partition.normalise import normalised
from rayfed.partition.stream import Stage, staged
from rayfed.partition.targets import Targets, by_stratum

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.data import Dataset, Part

MANY = 10**6  # clients, beyond which arrays with an entry for each take memory before a partition refuses their number
# what y holds -> the kind of task that `task.kind: auto` is
DEFAULTS = {
    "classes": "classify",
    "labels": "multilabel",
    "numbers": "regress",
    "records": "instruct",
    "items": "ranking",
    "problems": "pareto",
    "pairs": "pairs",
    "modalities": "modalities",
}
SHARED, VAL, TEST = 0, 1, 2  # role of a row: to be split by `federation.split`, or the data's own valid or test row

Draw = Callable[[str], np.random.Generator]  # a generator for a purpose, always the same one for the same purpose


@dataclass(frozen=True)
class Index:
    """Rows per client, compressed: client i has rows[offsets[i]:offsets[i + 1]]; offsets (n + 1,), rows int64."""

    offsets: np.ndarray
    rows: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(f"client {i} of {len(self)}")
        return self.rows[self.offsets[i] : self.offsets[i + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sizes(self) -> np.ndarray:
        """Return examples per client, (n,)."""
        return np.diff(self.offsets)

    def owners(self) -> np.ndarray:
        """Return the client of each entry of `rows`."""
        return np.repeat(np.arange(len(self)), self.sizes())

    @classmethod
    def of(cls, client: np.ndarray, rows: np.ndarray, clients: int) -> Index:
        """Return an index from the client of each row; every client's rows come out sorted."""
        order = np.lexsort((rows, client))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(client, minlength=clients))])
        return cls(offsets.astype(np.int64), np.ascontiguousarray(rows[order], np.int64))


class Names(Sequence[str]):
    """The clients' names, (n,), without an object for each: `ids` as an array, or their numbers where that is empty."""

    def __init__(self, n: int, ids: np.ndarray | None = None):
        self.n, self.ids = n, np.zeros(0, str) if ids is None else ids

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: Any) -> Any:
        at = range(self.n)[i]
        return tuple(map(self.__getitem__, at)) if isinstance(at, range) else str(self.ids[at] if len(self.ids) else at)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Owned:
    """What a partition decides about the training rows followed by the test rows, (n,) each.

    client: the row's client or -1, held-out clients having the highest numbers; role: SHARED, VAL or TEST; group: (N,) where
    the kind decides the planted groups itself; pooled_test: mask of the test rows that make up the pooled test set, None for all.
    """

    client: np.ndarray
    role: np.ndarray
    names: Names
    group: np.ndarray | None = None
    pooled_test: np.ndarray | None = None


@dataclass(frozen=True)
class Federation:
    """The whole split. Clients 0..population-1 take part, the others are held out ("unseen").

    arrays: x, y and further columns of all rows, training rows first, then the pooled test rows and the public ones, after the planted
    groups' transforms; train, val, test: rows per client; pooled_test: rows of the pooled test set; group: (N,) planted group or -1;
    names: natural ids or numbers; class_counts: (N, C) of the train split; public: rows of the public set, whose labels are -1 unless
    `public_labels`; notes: the data set's; backdoor: rows per client of marked copies of honest clients' test rows, None without a
    trigger; task: the task's kind; targets: what y holds where that is no class, the classes being strata then; new_classes: those of
    which no client has a row, in order; texts: (1 + T, C, L) token ids of the classes' names and of T sentences with each, -1 on padding,
    where the task reads them; stages: who holds what in each task of a stream (`federation.stream`), of which the splits here are the
    first one's, and every: rounds of one; modalities: what rows of kind modalities hold (`rayfed.data.modalities`); retained: rows of
    another task, at the end of the arrays.
    """

    arrays: dict[str, np.ndarray]
    train: Index
    val: Index
    test: Index
    pooled_test: np.ndarray
    population: int
    group: np.ndarray
    names: Sequence[str]
    class_counts: np.ndarray
    classes: int
    input_shape: tuple[int, ...]
    kind: str
    label_names: tuple[str, ...]
    public: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    notes: tuple[str, ...] = ()
    backdoor: Index | None = None
    task: str = "classify"
    targets: Targets | None = None
    public_labels: bool = False
    new_classes: tuple[int, ...] = ()
    texts: np.ndarray | None = None
    modalities: tuple[modalities.Modality, ...] = ()
    stages: tuple[Stage, ...] = ()
    every: int = 0
    retained: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def at(self, round: int) -> Federation:
        """Return who holds what in a round, from 1: this federation, or of a stream what the task of that round makes of it."""
        return self.stage(self.stage_of(round)) if self.stages else self

    def stage(self, number: int) -> Federation:
        """Return who holds what while task `number` of a stream is learned, from 1; arrays are shared."""
        return self._views[number - 1]

    def stage_of(self, round: int) -> int:
        """Return the number of the task that a stream has in a round, from 1; 1 without a stream."""
        return min(max(round - 1, 0) // self.every + 1, len(self.stages)) if self.stages else 1

    @cached_property
    def _views(self) -> tuple[Federation, ...]:
        return tuple(replace(self, **stage._asdict(), stages=()) for stage in self.stages)

    @property
    def form(self) -> str:
        """Return what y holds: classes | labels | numbers | records | items | problems | pairs | modalities
        (`rayfed.data.Dataset.form`)."""
        return self.targets.form if self.targets else OTHER_FORMS.get(self.kind, "classes")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the classes, labels or numbers that a model answers for."""
        return self.targets.names if self.targets else self.label_names

    @property
    def answers(self) -> int:
        """Return how many classes, labels or numbers a model answers for."""
        return len(self.targets.names) if self.targets else self.classes

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns that batches carry beside x, y and w."""
        return tuple(n for n in self.arrays if n not in "xy")

    @property
    def probe(self) -> np.ndarray:
        """Return the rows of the public set, of which a probe is the case without labels."""
        return self.public

    @property
    def clients(self) -> int:
        """Return N, held-out clients included."""
        return len(self.group)

    def numpy(self) -> dict[str, Any]:
        """Return a flat dict of arrays (so that an object store shares them without copies) and `meta`, plain values."""
        flat: dict[str, Any] = {f"arrays/{n}": a for n, a in self.arrays.items()}
        for n in ("train", "val", "test", *(("backdoor",) if self.backdoor else ())):
            index = getattr(self, n)
            flat[f"{n}/offsets"], flat[f"{n}/rows"] = index.offsets, index.rows
        for n in ("pooled_test", "group", "class_counts", "probe"):
            flat[n] = getattr(self, n)
        if self.texts is not None:
            flat["texts"] = self.texts
        if len(self.retained):
            flat["retained"] = self.retained
        flat["names"] = np.array(getattr(self.names, "ids", self.names), dtype=str)
        flat["meta"] = {
            "population": self.population, "classes": self.classes, "input_shape": list(self.input_shape),
            "kind": self.kind, "label_names": list(self.label_names), "notes": list(self.notes),
            "task": self.task, "public_labels": self.public_labels,
            **({"targets": self.targets.to_dict()} if self.targets else {}),
            **({"new_classes": list(self.new_classes)} if self.new_classes else {}),
            **({"modalities": [list(m) for m in self.modalities]} if self.modalities else {}),
        }  # fmt: skip
        if self.stages:
            flat["meta"] |= {"every": self.every, "stages": len(self.stages)}
            flat |= {f"stages/{k}/{n}": a for k, stage in enumerate(self.stages) for n, a in stage.numpy().items()}
        return flat

    def digest(self) -> str:
        """Return a digest of the data and of who holds what: federations with the same one give the same numbers.

        Of the arrays it holds CRC-32s, which gigabytes of pictures take seconds for and other digests many.
        """
        flat = self.numpy()
        about = {k: v for k, v in flat.pop("meta").items() if k not in ("notes", "task", "public_labels")}
        for name, array in flat.items():
            crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data) if array.nbytes else 0
            about[f"array {name}"] = [array.dtype.str, array.shape, crc]
        return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()

    @classmethod
    def from_numpy(cls, flat: Mapping[str, Any]) -> Federation:
        """Return what `numpy` gave; the arrays are used as they are, not copied."""
        meta = dict(flat["meta"])
        meta |= {n: tuple(meta[n]) for n in ("input_shape", "label_names", "notes")}
        meta["targets"], meta["new_classes"] = Targets.of(meta.get("targets")), tuple(meta.get("new_classes", ()))
        meta["modalities"] = modalities.of(meta.get("modalities", ()))
        made: dict[str, Any] = {n: flat[n] for n in ("pooled_test", "group", "class_counts")}
        made["public"], made["texts"] = flat["probe"], flat.get("texts")
        made |= {"retained": flat["retained"]} if "retained" in flat else {}
        splits = [n for n in ("train", "val", "test", "backdoor") if f"{n}/offsets" in flat]
        made |= {n: Index(flat[f"{n}/offsets"], flat[f"{n}/rows"]) for n in splits}
        made["arrays"] = {k.removeprefix("arrays/"): a for k, a in flat.items() if k.startswith("arrays/")}
        made["stages"] = tuple(Stage.from_numpy(flat, f"stages/{k}/", Index) for k in range(meta.pop("stages", 0)))
        return cls(names=Names(len(flat["group"]), flat["names"]), **made, **meta)


def draws(seed: int) -> Draw:
    """Return what decides every split of a seed."""
    return lambda purpose: keys.numpy(keys.key(seed, 0, -1, f"partition/{purpose}"))


def split_key(config: Mapping[str, Any]) -> str:
    """Return what decides a run's `Federation`, as text: of two configs (as `Config.to_dict`) that agree in it, one serves both. Of a
    pretrained model too, since texts are kept as its tokenizer's ids, and cut to the places that a prompt leaves."""
    task, model = config["task"], config["task"]["model"].get("name", "")
    words = [model, config["adapter"].get("tokens")] if ":" in model else []
    scored = config["evaluate"].get("split")
    asked = [
        config["seed"],
        task["data"],
        task.get("kind"),
        config["federation"],
        words,
        scored,
        config.get("attacks") or [],
        *([task["normalise"]] if task.get("normalise", "none") != "none" else []),
        *([config["evaluate"]["retained"]] if config["evaluate"].get("retained") else []),
    ]
    return json.dumps(asked, sort_keys=True, default=str)


def build(config: Config, dataset: Dataset | None = None) -> Federation:
    """Return the federation of a config. ConfigError if the data cannot be split as asked.

    Only `seed`, `federation`, `evaluate.split` and the data decide; with `split: val` validation splits stand in the place of
    test splits, and those of the clients that take part are the pooled test set. Clients hold every training row, and each only
    once, except the rows of natural ids that were not drawn, of classes that no group of `groups.sets` holds, without a domain
    where domains decide, what `embedding` and `longtail` say they leave out, and the public rows, which are taken out before
    anything is dealt. Rows without a class are dealt by strata (`rayfed.partition.targets`).
    """
    dataset = whole = read(config, dataset)
    f, n = config.federation, config.federation.clients
    phases.begin(f"splitting {dataset.name} over {n:,} clients")
    held = n - config.training_clients()
    there = len(dataset.train.y) + len(dataset.test.y)
    if n > max(there, MANY):
        raise ConfigError(f"federation.clients: {n:,} found, allowed: at most the {there:,} rows of {dataset.name}")

    draw = draws(config.seed)
    name = config.task.kind.name
    if name == "auto":
        pair = (dataset.kind, dataset.form) == ("image", "classes") and folder.is_pair(config.task.model.name)
        name = "towers" if pair else DEFAULTS[dataset.form]
    if dataset.kind == "items" and f.partition.kind != "natural":
        raise ConfigError(
            f"federation.partition.kind: {f.partition.kind} found, {dataset.name} says who took which item; allowed: natural"
        )
    if f.holdout.domain is not None and f.partition.kind != "natural":
        raise ConfigError(
            f"federation.holdout.domain: {f.holdout.domain!r} found, under {f.partition.kind} a client is of no domain; "
            "allowed: partition natural"
        )
    texts = class_texts.ids(dataset, config) if name == "towers" else None
    dataset, targets = by_stratum(dataset)
    public, new, dataset = set_aside(f, dataset, targets, draw("probe"))
    f = f.model_copy(update={"groups": planted.counted(f.groups, dataset)})
    if problems := planted.problems(f.groups, dataset, targets) + planted.too_many(f.groups, n - held):
        raise ConfigError(problems)
    rows = _domain_rows(f, dataset, n - held) if f.groups.kind == "domain" else None
    # Each side gets every group in equal numbers: an unseen client's group should be one that trained.
    group = np.concatenate([
        planted.assign(f.groups, n - held, 0, draw("groups"), rows),
        planted.assign(f.groups, held, n - held, draw("groups of held-out clients"), rows),
    ])  # fmt: skip
    owned = importlib.import_module(f"rayfed.partition.{f.partition.kind}").split(f, dataset, group, held, draw)
    group = group if owned.group is None else owned.group
    train, val, test = _client_splits(owned, n, f.split, draw("client splits"))
    row_client = owned.client
    probe = np.arange(len(row_client), len(row_client) + len(public.y))
    row_group = np.concatenate([np.where(row_client >= 0, group[row_client], -1), np.full(len(public.y), -1)])

    parts = (dataset.train, dataset.test, public)
    y = np.concatenate([p.y for p in parts])
    pooled = _pooled_test(f, dataset, y, owned.pooled_test)
    if f.groups.kind not in ("none", "domain"):
        weights = np.zeros(f.groups.count)
        np.add.at(weights, group[: n - held], train.sizes()[: n - held])
        free = pooled[row_client[pooled] < 0]
        row_group[free] = keys.proportional(weights, len(free), draw("pooled test"))
        row_group[probe] = keys.proportional(weights, len(probe), draw("probe's groups"))
    x = np.concatenate([p.x for p in parts])
    x, y = planted.transform(f.groups, x, y, row_group, dataset.classes, draw("transforms"))
    if dataset.kind == "items":
        pooled = pooled[row_client[pooled] >= 0]  # nobody's history is known of the others
    if config.evaluate.split == "val":
        test, pooled = val, np.sort(val.rows[val.owners() < n - held])
        if not len(pooled):
            raise ConfigError(
                "evaluate.split: val found, and no client has validation rows; federation.split.val gives them a share"
            )
    elif f.split.tests == "others":  # validation rows stay a client's own
        test = exchanged(test, group[: n - held])
    elif f.split.tests == "all":
        test = everybodys(test)
    if dataset.modalities or f.modalities != type(f.modalities)():
        x = owners.masked(f.modalities, dataset, x, row_client, np.union1d(test.rows, pooled), n - held, held, draw)
    backdoor = None
    columns = {c: np.concatenate([p.columns[c] for p in parts]) for c in dataset.train.columns}
    if dataset.kind == "items":
        columns["user"] = np.concatenate([row_client, np.full(len(public.y), -1)])
    if config.attacks:
        x, y, backdoor = _attacked(config, x, y, train, test, dataset, tuple(columns))
    notes = dataset.notes
    if config.task.normalise == "clients":
        x, note = normalised(config, dataset, x, train.rows[train.owners() < n - held])
        notes = (*notes, note)
    counts = np.bincount(train.owners() * dataset.classes + y[train.rows], minlength=n * dataset.classes)
    arrays = {"x": x, "y": y} | columns
    if not f.public.labels:
        arrays["y"][probe] = 0 if targets and targets.form == "numbers" else -1
    arrays, others = {n: np.ascontiguousarray(a) for n, a in arrays.items()}, np.zeros(0, np.int64)
    if config.evaluate.retained is not None:
        arrays, others = _with_retained(config, arrays, whole)
    made = Federation(
        arrays, train, val, test, pooled, n - held, group, owned.names,
        counts.reshape(n, dataset.classes).astype(np.int64, copy=False), dataset.classes, dataset.input_shape, dataset.kind,
        dataset.label_names, probe, notes, backdoor, name, targets, f.public.labels, tuple(map(int, new)), texts,
        dataset.modalities,
        retained=others,
    )  # fmt: skip
    return made if f.stream.kind == "none" else staged(made, f.stream, draw, dataset.name)


def read(config: Config, dataset: Dataset | None = None) -> Dataset:
    """Return the data set of `task.data`, texts as the model's tokens; dataset: it, where it has been read already."""
    if dataset is None:
        from rayfed import data

        phases.begin(f"reading {config.task.data.name}")
        dataset = data.load(config.task.data, config.seed)
    if dataset.train.x.dtype == object:
        phases.begin(f"tokenising the texts of {dataset.name}")
        from rayfed.data import chat, instruct, text

        by = text if dataset.kind == "text" else chat if dataset.train.x.shape[1] == 1 else instruct
        return by.tokenised(dataset, config)
    if dataset.kind == "text":
        from rayfed.data import text

        text.check_ids(dataset, config)
    return dataset


def _with_retained(
    config: Config, arrays: dict[str, np.ndarray], dataset: Dataset
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the arrays with the rows of `evaluate.retained` at their end, and which these are."""
    try:
        other = read(retained.config_of(config))
    except ConfigError as e:
        raise ConfigError(retained.named(e.problems)) from None
    return retained.added(config, arrays, dataset, other)


def _attacked(
    config: Config,
    x: np.ndarray,
    y: np.ndarray,
    train: Index,
    test: Index,
    dataset: Dataset,
    columns: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray, Index | None]:
    """Return x and y after the attacks on data, and the rows with an attacker's trigger by client, None without any."""
    mine, theirs = ([split[c] for c in range(config.training_clients())] for split in (train, test))
    made = attack.poison(config, x, y, mine, theirs, dataset.kind, dataset.classes)
    if columns and not np.array_equal(made.y, y):  # marked copies would lack the columns, and labels may stand in one
        raise ConfigError(
            f"attacks: an attack on data found, {dataset.name} has more than x and classes ({', '.join(columns)}); allowed: "
            "attacks on updates"
        )
    backdoor = Index.of(made.owner, made.triggered, len(train)) if len(made.triggered) else None
    return made.x, made.y, backdoor


def exchanged(test: Index, group: np.ndarray) -> Index:
    """Return the index in which each of the first len(group) clients has another one's rows, where it can be of another group.

    Clients stand in a circle by group and get the rows of who stands opposite; group: (n,) of the clients that take part.
    """
    order, source = np.argsort(group, kind="stable"), np.arange(len(test))
    source[order] = np.roll(order, len(order) // 2)
    offsets = np.concatenate([[0], np.cumsum(test.sizes()[source])])
    return Index(offsets.astype(np.int64), np.concatenate([test[int(i)] for i in source]))


def everybodys(test: Index) -> Index:
    """Return the index in which every client has the test rows of all, in their order."""
    rows = np.sort(test.rows)
    offsets = np.arange(len(test) + 1, dtype=np.int64) * len(rows)
    return Index(offsets, np.tile(rows, len(test)))


def new_classes(f: Any, dataset: Dataset, targets: Targets | None) -> np.ndarray:
    """Return the numbers of the classes of which no client may have a row, in order. ConfigError where they cannot be set aside."""
    asked, classes = f.new_classes, dataset.classes
    if not asked:
        return np.zeros(0, np.int64)
    names = dict(zip(dataset.label_names, range(classes), strict=True))
    wanted = list(range(max(classes - asked, 0), classes)) if isinstance(asked, int) else asked
    found = [c if isinstance(c, int) else names.get(c, -1) for c in wanted]
    where, problems = "federation.new_classes", []
    if targets is not None or dataset.form != "classes":
        problems.append(f"{where}: {asked} found, {dataset.name} has no classes; allowed: 0")
    elif wrong := [w for w, c in zip(wanted, found, strict=True) if not 0 <= c < classes]:
        near = nearest(str(wrong[0]), names)
        problems.append(f"{where}: {wrong[0]!r} found{near}, allowed: 0 to {classes - 1}, or {', '.join(names)}")
    elif classes - len(found) < 2:
        problems.append(f"{where}: {len(found)} of {classes} classes found, allowed: at most {classes - 2}")
    if f.groups.kind in ("label_permutation", "classes"):
        problems.append(
            f"federation.groups.kind: {f.groups.kind} found, allowed with new_classes: none, rotation, domain"
        )
    if problems:
        raise ConfigError(problems)
    return np.unique(found)


def set_aside(
    f: Any, dataset: Dataset, targets: Targets | None, rng: np.random.Generator
) -> tuple[Part, np.ndarray, Dataset]:
    """Return (the public rows, the classes that no client has, the data set that is dealt): without either."""
    new = new_classes(f, dataset, targets)
    public, rest = _without_public(f, dataset, rng, new)
    if len(new):
        rest = replace(rest, train=rest.train.take(np.flatnonzero(~np.isin(rest.train.y, new))))
    return public, new, rest


def _without_public(f: Any, dataset: Dataset, rng: np.random.Generator, new: np.ndarray) -> tuple[Part, Dataset]:
    """Return the training rows that become the public set, drawn from those of its domain and of its classes, and the data set without
    them. new: the classes that no client has."""
    size, where = f.public_rows, "public.rows" if f.public.rows else "probe"
    if not size:
        return dataset.train.take(np.zeros(0, np.int64)), dataset
    among = np.arange(len(dataset.train.y))
    if f.public.domain is not None:
        names, code, _ = planted.domains(dataset, "federation.public.domain")
        if f.public.domain not in names:
            raise ConfigError(
                f"federation.public.domain: {f.public.domain!r} found{nearest(f.public.domain, names)}, "
                f"{dataset.name} has: {', '.join(names)}"
            )
        among = np.flatnonzero(code == names.index(f.public.domain))
    if f.public.classes == "new":
        among = among[np.isin(dataset.train.y[among], new)]
        if size > len(among):
            raise ConfigError(
                f"federation.{where}: {size} found, allowed: at most the {len(among)} training rows of federation.new_classes"
            )
    if size > len(among) - (len(among) == len(dataset.train.y)):
        of = f"of domain {f.public.domain}" if f.public.domain is not None else f"training rows of {dataset.name}"
        least = "at most" if len(among) < len(dataset.train.y) else "less than"
        raise ConfigError(f"federation.{where}: {size} found, allowed: {least} the {len(among)} {of}")
    taken = np.zeros(len(dataset.train.y), bool)
    taken[among[rng.choice(len(among), size, replace=False)]] = True
    rest = replace(dataset, train=dataset.train.take(np.flatnonzero(~taken)))
    return dataset.train.take(np.flatnonzero(taken)), rest


def _client_splits(owned: Owned, n: int, split: Any, rng: np.random.Generator) -> tuple[Index, Index, Index]:
    """Return (train, val, test). A client's own valid or test rows are used as such; else a share of its rows, rounded to the
    nearest, leaving at least one to train on."""
    rows = np.flatnonzero((owned.client >= 0) & (owned.role == SHARED))
    size = np.bincount(owned.client[rows], minlength=n)
    if (size == 0).any():
        first = owned.names[int(np.argmin(size))]
        raise ConfigError(
            f"federation.clients: {(size == 0).sum()} of {n} clients (first: {first}) would hold no training example; "
            "ask for fewer clients, or for other class sets"
        )
    order = np.lexsort((rng.random(len(rows)), owned.client[rows]))
    rows = rows[order]
    client = owned.client[rows]
    rank = np.arange(len(rows)) - (np.cumsum(size) - size)[client]

    def own(role: int) -> np.ndarray:
        return np.flatnonzero((owned.client >= 0) & (owned.role == role))

    def share(fraction: float, role: int, used: np.ndarray | int) -> np.ndarray:
        has = np.bincount(owned.client[own(role)], minlength=n) > 0
        return np.where(has, 0, np.minimum(np.rint(fraction * size), size - 1 - used)).astype(np.int64)

    n_test = share(split.test, TEST, 0)
    n_val = share(split.val, VAL, n_test)
    in_test = rank < n_test[client]
    in_val = ~in_test & (rank < (n_test + n_val)[client])

    def index(mask: np.ndarray, role: int) -> Index:
        every = np.concatenate([rows[mask], own(role)]) if role != SHARED else rows[mask]
        return Index.of(owned.client[every], every, n)

    return index(~in_test & ~in_val, SHARED), index(in_val, VAL), index(in_test, TEST)


def _domain_rows(f: Any, dataset: Dataset, clients: int) -> np.ndarray:
    """Return training rows of each domain, (D,)."""
    names, code, _ = planted.domains(dataset, "federation.groups.kind")
    if clients < len(names) and f.partition.kind != "natural":
        raise ConfigError(
            f"federation.clients: {clients} clients that take part found for {len(names)} domains of {dataset.name}, allowed: "
            f"at least {len(names)}"
        )
    return np.bincount(code[code >= 0], minlength=len(names))


def _pooled_test(f: Any, dataset: Dataset, y: np.ndarray, keep: np.ndarray | None) -> np.ndarray:
    """Return the rows of the pooled test set: all test rows, of the classes or domains that some group holds.

    Under `natural`, rows of clients without training rows are left out where there are others: they are the unseen clients'.
    """
    first = len(dataset.train.y)
    keep = np.ones(len(dataset.test.y), bool) if keep is None else keep
    if f.partition.kind == "natural" and dataset.test.split is not None and (dataset.test.split == "test").any():
        keep = dataset.test.split == "test"
    rows = (first + np.flatnonzero(keep)).astype(np.int64)
    if f.groups.kind == "classes":
        held = np.unique(np.concatenate(planted.class_sets(f.groups, dataset.classes)))
        rows = rows[np.isin(y[rows], held)]
    if f.groups.kind == "domain" and dataset.test.domain is not None:
        rows = rows[planted.domains(dataset, "federation.groups.kind")[2][rows - first] >= 0]
    return rows


def within_groups(
    f: Any,
    dataset: Dataset,
    group: np.ndarray,
    draw: Draw,
    deal: Callable[..., np.ndarray],
    least: int,
    *,
    of: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    held: int | None = None,
) -> Owned:
    """Return who holds which training rows, dealt group by group, so that class-subset groups see only their classes.

    deal(y (m,), clients, rng) -> (m,) the number 0..clients-1 that gets each row, or -1. The clients of one group are
    exchangeable, so the held-out ones are simply the last. of: (n,) what `deal` sees instead of the labels; rows: the
    training rows to deal, default all; held: held-out clients of the federation, where `deal(..., held=)` wants its group's.
    """
    y = dataset.train.y
    of = y if of is None else of
    domain = planted.domains(dataset, "federation.groups.kind")[1] if f.groups.kind == "domain" else None
    client = np.full(len(y) + len(dataset.test.y), -1, np.int64)
    if rows is None:
        rows = np.arange(len(y))
    by_group = planted.rows_of(
        f.groups, y[rows], group, dataset.classes, draw("rows of groups"), None if domain is None else domain[rows]
    )
    for g, at in by_group.items():
        mine, members = rows[at], np.flatnonzero(group == g)
        if len(mine) < len(members) * least:
            of_group = f" of group {g}" if f.groups.kind != "none" else ""
            raise ConfigError(
                f"federation.clients: {len(members)} clients{of_group} cannot get {least} examples each from {len(mine)} rows; "
                f"allowed: at most {len(mine) // least}{of_group and ' in it'}, or a smaller partition.min_examples"
            )
        own = {} if held is None else {"held": int((members >= len(group) - held).sum())}
        to = deal(of[mine], len(members), draw(f"deal {g}"), **own)
        client[mine] = np.where(to >= 0, members[to], -1)
    return Owned(client, np.full(len(client), SHARED, np.int8), Names(len(group)))


def top_up(client: np.ndarray, n: int, least: int, rng: np.random.Generator) -> np.ndarray:
    """Return the same dealing (m,) after moving single rows, always from the client that is largest then, until all n have `least`."""
    size = np.bincount(client, minlength=n)
    lack = np.maximum(least - size, 0)
    need = int(lack.sum())
    if not need:
        return client
    low, high = least, int(size.max())  # taking from the largest, one by one, cuts all large ones down to one level
    while low < high:
        level = (low + high + 1) // 2
        low, high = (level, high) if np.maximum(size - level, 0).sum() >= need else (low, level - 1)
    give = np.maximum(size - low, 0)
    give[np.flatnonzero(give)[: int(give.sum()) - need]] -= 1
    order = np.lexsort((rng.random(len(client)), client))
    rank = np.empty(len(client), np.int64)
    rank[order] = np.arange(len(client)) - np.repeat(np.cumsum(size) - size, size)
    moved = np.flatnonzero(rank < give[client])
    out = client.copy()
    out[rng.permutation(moved)] = np.repeat(np.arange(n), lack)
    return out


make_callable(__name__)  # `rayfed.partition(config)` describes a split
