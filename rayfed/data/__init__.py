"""Data sets: one file per source. A source gives labelled training and test rows as NumPy arrays."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.errors import ConfigError, nearest, refusing

if TYPE_CHECKING:
    from rayfed.config.schema import Named
    from rayfed.data.modalities import Modality

SOURCES = {  # head of the name -> file
    "digits": "digits",
    "parquet": "parquet",
    "hf": "hub",
    "synthetic": "synthetic",
    "sklearn": "bundled",
    "pareto": "fronts",
    "modalities": "modal_sets",
    "scenes": "scenes",
}
RESERVED = ("x", "y", "w")  # names of what every batch has
OTHER_FORMS = {  # kind of data -> what y holds, where that is no target
    "instruct": "records",
    "items": "items",
    "pareto": "problems",
    "pairs": "pairs",
    "modalities": "modalities",
}
BUNDLED = {  # name -> of what it is, and what is predicted
    "breast_cancer": "569 biopsies, 30 measurements; malignant or benign",
    "diabetes": "442 patients, 10 measurements; progression of the disease after a year, a number",
    "iris": "150 flowers, 4 measurements; 3 species",
    "linnerud": "20 men, 3 exercises; weight, waist and pulse, three numbers",
    "wine": "178 wines, 13 measurements; 3 growers",
}

FRONTS = {  # name -> of which problems (`rayfed.fronts`)
    "f": "six problems of two objectives and six numbers, F1 to F6",
    "re": "five engineering problems of three objectives",
    "zdt": "four problems of two objectives and ten numbers, ZDT1, 2, 3, 6",
}


@dataclass(frozen=True)
class Part:
    """Rows: x (n, ...) float32 (images (n, C, H, W) in [0, 1]), or texts (n,) as objects until they are token ids (n, L)
    int32, or instruction, input and response (n, 3) as objects until they are ids and targets (n, 2, L) int32; y (n,) int64;
    natural client, domain, split (n,) str.

    split: train | valid | test | test_unseen (a client without training rows). An empty client name means none. columns: further
    ones by name, (n, ...) numbers, that batches carry beside x and y; of what may be absent, one more column says where it is there.

    Where a row has no class, y holds its labels (n, L), each 0 or 1, or its numbers (n,) or (n, T) floats.
    """

    x: np.ndarray
    y: np.ndarray
    client: np.ndarray | None = None
    domain: np.ndarray | None = None
    split: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def take(self, rows: np.ndarray) -> Part:
        """Return these rows."""
        client, domain, split = (None if a is None else a[rows] for a in (self.client, self.domain, self.split))
        columns = {n: a[rows] for n, a in self.columns.items()}
        return Part(self.x[rows], self.y[rows], client, domain, split, columns)


@dataclass(frozen=True)
class Dataset:
    """A named data set; kind: image | tabular | text | instruct | items | pareto | pairs | modalities; classes, label_names: of the
    classes, of the labels, or of the numbers that y holds; notes: what a reader of results should know of how it was read; modalities:
    what a row of kind modalities holds, in its order (`rayfed.data.modalities`)."""

    name: str
    train: Part
    test: Part
    classes: int
    label_names: tuple[str, ...]
    kind: str
    notes: tuple[str, ...] = ()
    modalities: tuple[Modality, ...] = ()

    @property
    def form(self) -> str:
        """Return what y holds: classes (n,) whole numbers | labels (n, L) 0 or 1 | numbers (n,) or (n, T) floats | records, whose x
        holds the targets too | items that the row's user took, whole numbers (n,) | problems, whole numbers (n,) | pairs,
        whose two sides are in x, (n, 2, L) | modalities, whole numbers (n,), classes of rows that lack some of what others have."""
        y = self.train.y
        if self.kind in OTHER_FORMS:
            return OTHER_FORMS[self.kind]
        return "numbers" if y.dtype.kind == "f" else "labels" if y.ndim == 2 else "classes"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one example: (C, H, W) or (features,)."""
        return tuple(self.train.x.shape[1:])


def names() -> list[tuple[str, str]]:
    """Return (name, one sentence) of every source, for `rayfed tasks`."""
    return [
        ("digits", "1,797 real handwritten digits of 8x8 pixels (scikit-learn), 360 of them the pooled test set"),
        (
            "parquet:DIR",
            "train.parquet and test.parquet, or one file: images, texts, instructions with responses, numeric columns, pairs of "
            "texts, or who took which item; a label, labels or numbers, maybe client and domain",
        ),
        (
            "hf:NAME_OR_PATH",
            "a labelled set through the `datasets` library, from the hub, a local folder or a file (CSV, JSON, Parquet, Arrow)",
        ),
        ("synthetic:blobs", "Gaussian classes in `features` dimensions"),
        ("synthetic:images", "images of one smooth pattern per class under noise"),
        ("synthetic:logistic", "synthetic(alpha, beta) of Li et al. 2020 with natural clients"),
        ("synthetic:domains", "Gaussian classes that each domain sees turned and moved its own way (constructed)"),
        ("synthetic:pairs", "questions and passages of several topics, in words of their own (constructed)"),
        (
            "synthetic:sites",
            "pictures with two labels of five sites of unequal size, one of them shifted (constructed)",
        ),
        ("synthetic:shapes", "pictures of coloured shapes, whose classes are called after both (constructed)"),
        ("synthetic:tastes", "users of some taste groups and the items that they took (constructed)"),
        (
            "synthetic:multilabel",
            "rows with several labels each, every label a half-space of the features (constructed)",
        ),
        (
            "synthetic:quadratics",
            "points that clients' quadratic functions are least at, summing to zero (constructed)",
        ),
        ("modalities:constructed", "picture, text and measurements of one hidden class and state (constructed)"),
        ("modalities:digits", "the digits in quarters or halves, each a modality of its own"),
        ("scenes:anomalies", "digits of which the first ones are trained on and all are tested, for reconstruction"),
        ("scenes:strokes", "real digits' strokes with masks of three nested regions, at sites (constructed)"),
        ("scenes:objects", "scenes of several real digits with boxes, in four weathers (constructed)"),
        *((f"sklearn:{n}", about) for n, about in BUNDLED.items()),
        *((f"pareto:{n}", about) for n, about in FRONTS.items()),
        ("path/to/file.py:function", "your own function (seed, **options) -> rayfed.data.Dataset"),
    ]


def _source(spec: Named) -> Any:
    head, colon, rest = spec.name.partition(":")
    if ".py:" in spec.name or spec.name.endswith(".py"):
        return importlib.import_module("rayfed.data.own")
    known = [n for n, _ in names()]
    if head not in SOURCES or (head == "digits" and colon):
        raise ConfigError(
            f"task.data: {spec.name!r} is unknown{nearest(spec.name, [*SOURCES, *known])}; known: {', '.join(known)}"
        )
    if head != "digits" and not rest:
        raise ConfigError(
            f"task.data: {spec.name!r} is not complete; known: {', '.join(k for k in known if k.startswith(head))}"
        )
    return importlib.import_module(f"rayfed.data.{SOURCES[head]}")


def check(spec: Named) -> list[str]:
    """Return what is wrong with `task.data`, without loading it."""
    try:
        with refusing(f"task.data: {spec.name} cannot be read"):
            return list(_source(spec).check(spec))
    except ConfigError as e:
        return e.problems


def load(spec: Named, seed: int) -> Dataset:
    """Return the data set. ConfigError if it cannot be had as described."""
    with refusing(f"task.data: {spec.name} cannot be read"):
        source = _source(spec)
        problems = list(source.check(spec))
        if problems:
            raise ConfigError(problems)
        made: Dataset = source.load(spec, seed)
    if not len(made.test.y):
        made = replace(made, notes=(*made.notes, f"{made.name} has no test rows: no score of one pooled test set"))
    return made


def unknown_options(spec: Named, known: tuple[str, ...]) -> list[str]:
    """Return a sentence for every option that the source does not have."""
    return [
        f"task.data.{o}: unknown option of {spec.name}{nearest(o, known)}; known: {', '.join(known) or 'none'}"
        for o in spec.options if o not in known
    ]  # fmt: skip


def stratified(y: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Return a mask (n,) of about `fraction` of the rows: the same share of every class, at least one row of each that has two."""
    mask = np.zeros(len(y), bool)
    for c in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == c))
        mask[rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]] = True
    return mask
