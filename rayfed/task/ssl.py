"""Features without labels: learn what makes two views of an image alike; labels only judge, by neighbours and by a linear probe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from rayfed import attack, augment, keys
from rayfed.config.schema import Kind
from rayfed.errors import ConfigError
from rayfed.lazy import F, torch
from rayfed.metrics import MEASURES, Measure
from rayfed.task import TaskKind, TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.tree import Tree

FOLDS = 2  # of the linear probe
VOTE = 0.07  # what cosines are divided by in a neighbour's vote (Wu et al. 2018; DINO's code)


class SSL(TaskKind):
    """Learn features (B, d) of images without labels, which only judge them.

    Features are what a network's last layer `head` is given; the layer itself is left out, so that a run's model is a start (`init.from`)
    for any task with the same network.

    A training step makes `views` large crops of each image and `crops` small ones (multi-crop, Caron et al. 2020, "Unsupervised Learning of
    Visual Features by Contrasting Cluster Assignments", 2006.09882), each changed by `local.augment` too. Small crops are shown at the
    images' own size, so that any network takes them. loss: contrast of a row's first two views, -log of exp(cos(z_i, z'_i) / T) over the
    sum of exp(cos(z_i, z'_j) / T) over the batch's rows j, both ways (after SimCLR, Chen et al. 2020, "A Simple Framework for Contrastive
    Learning of Visual Representations", 2002.05709, without a projector, and against the other views' rows alone); methods that have
    another one (`franca`) make their own views. Measures are of a set of rows, a client's or the pooled test set, and use its labels:
    knn: leave one out, the class with the most votes exp(cos / 0.07) of the `k` nearest others; knn@p: with the first 1/p of the
    features; linear: a logistic regression's share of right answers, trained on one half of the rows and asked for the other, both ways;
    loss: as in training, over the whole set, with the images themselves as views.
    """

    class Settings(TaskSettings):
        k: int = Field(10, ge=1, description="Neighbours that vote.")
        parts: list[int] = Field([4], description="knn@p is of the first 1/p of the features, for each p.")
        views: int = Field(2, ge=2, description="Large crops of each image in a training step.")
        crops: int = Field(0, ge=0, description="Small crops of each image, for methods that take them.")
        area: tuple[float, float] = Field((0.4, 1.0), description="Share of an image's area that a large crop shows.")
        small_area: tuple[float, float] = Field(
            (0.1, 0.4), description="Share of an image's area that a small crop shows."
        )
        temperature: float = Field(0.2, gt=0, description="What cosines are divided by in the loss.")

    reads: ClassVar[tuple[str, ...]] = ("classes", "labels")
    offers: ClassVar[frozenset[str]] = frozenset({"views", "features"})
    models: ClassVar[tuple[str, ...]] = ("mlp", "cnn", "resnet", "vit-tiny")
    pooled: ClassVar[bool] = False
    measures: tuple[Measure, ...] = (
        MEASURES["loss"]._replace(
            of="set", text="contrast of a row with all rows of the set, the images themselves as views"
        ),
        Measure("knn", "higher", "fraction", "share of rows whose class their nearest others have, by votes", "set"),
        Measure(
            "linear", "higher", "fraction", "share of rows that a linear probe of the other half gets right", "set"
        ),
    )

    @classmethod
    def measured(cls, settings: Any) -> tuple[Measure, ...]:
        """Return loss, knn, linear and knn@p of each p."""
        return cls.measures + tuple(
            Measure(f"knn@{p}", "higher", "fraction", f"knn with the first 1/{p} of the features", "set")
            for p in settings.parts
        )

    @classmethod
    def problems(cls, config: Config, federation: Federation) -> list[str]:
        """Return why features cannot be learned as asked."""
        if federation.kind != "image":
            return [f"task.kind: ssl makes views of images, task.data holds {federation.kind} data"]
        s, found = cls.Settings(**config.task.kind.options), attack.unread(config, "ssl")
        found += [f"task.kind.parts: {p} found, allowed: whole numbers >= 2" for p in s.parts if p < 2]
        for name in ("area", "small_area"):
            kind = Kind.model_validate({"kind": "resized_crop", "area": list(getattr(s, name))})
            found += [
                p.replace("task.kind.area", f"task.kind.{name}") for p in augment.REGISTRY.problems(kind, "task.kind")
            ]
        return found

    def _network(self, base: Any) -> Any:
        """Return the network without its last layer."""
        module = super()._network(base)
        if not isinstance(getattr(module, "head", None), torch.nn.Linear):
            raise ConfigError(
                f"task.model: {self.config.task.model.name} has no last layer `head` (torch.nn.Linear), and task.kind: ssl learns what "
                "such a layer is given; allowed: mlp, cnn, resnet, vit-tiny, or a network of your own with one"
            )
        module.head = torch.nn.Identity()
        return module

    def answer_shape(self, rows: int) -> tuple[tuple[int | None, str], ...]:
        """Return (rows, d) of any d."""
        return (rows, "rows"), (None, "features")

    @cached_property
    def feature_size(self) -> int:
        """Return d."""
        with torch.no_grad():
            return int(self.apply(self.initial, torch.zeros(1, *self.input_shape, dtype=self.dtype)).shape[1])

    def features(self, params: Tree, x: Tensor) -> Tensor:
        """Return features (B, d) of inputs."""
        return self.apply(params, x)

    @cached_property
    def _croppers(self) -> tuple[Any, Any]:
        s = self.settings
        return tuple(  # type: ignore[return-value]
            augment.REGISTRY.make(Kind.model_validate({"kind": "resized_crop", "area": list(a)}))
            for a in (s.area, s.small_area)
        )

    def views(self, x: Tensor, key: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return (large crops, small crops) of images (B, C, H, W), each (B, C, H, W); key: a training step's."""
        s, (large, small) = self.settings, self._croppers
        made = [
            augment.views([large if i < s.views else small, *self._augment], x, keys.fold(key, i))
            for i in range(s.views + s.crops)
        ]
        return made[: s.views], made[s.views :]

    def seen(self, params: Tree, x: Tensor, batch: Any, key: Any) -> Tensor:
        """Return features (B, d) of a view as a training step has them: in train mode, with no further augmentation."""
        with self.training(batch, key), self._while(mixed=True):
            return self.apply(params, x)

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the contrast of each row's two views with the batch's, (B,); without a key the views are the images themselves."""
        x = batch["x"]
        (one, two, *_), _ = self.views(x, key) if key is not None else ([x, x], [])
        a, b = (F.normalize(self.seen(params, v, batch, key), dim=1, eps=1e-6) for v in (one, two))
        s = a @ b.T / self.settings.temperature
        hidden = ((batch["w"] == 0)[None] & ~torch.eye(len(s), dtype=torch.bool, device=s.device)).to(s.dtype) * -1e9
        own = s.diagonal()
        return (torch.logsumexp(s + hidden, 1) + torch.logsumexp(s.T + hidden, 1)) / 2 - own

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return nothing: all measures are of sets."""
        return {}

    def score(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return what measures of sets read: features (B, d) as `prediction`."""
        return {"prediction": self.predict(params, batch)}

    def summary(self, rows: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, float]:
        """Return loss, knn, linear and knn@p of a set of rows; NaN where fewer than two rows, or classes, are there."""
        h, y = np.asarray(rows["prediction"], np.float64), np.asarray(batch["y"])
        y = y if y.ndim == 1 else y @ (1 << np.arange(y.shape[1]))  # of several labels: their combination
        found = {
            "loss": contrast(h, self.settings.temperature),
            "knn": neighbours(h, y, self.settings.k),
            "linear": probe(h, y),
        }
        narrow = {
            f"knn@{p}": neighbours(h[:, : max(1, h.shape[1] // p)], y, self.settings.k) for p in self.settings.parts
        }
        return {**found, **narrow}


def _unit(h: np.ndarray) -> np.ndarray:
    return h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)


def contrast(h: np.ndarray, temperature: float) -> float:
    """Return the mean over rows (n, d) of -log of exp(1 / T) over the sum of exp(cos / T) to all rows; NaN of fewer than two."""
    if len(h) < 2:
        return math.nan
    z = _unit(h)
    s = (z @ z.T) / temperature
    top = s.max(1)
    return float((top + np.log(np.exp(s - top[:, None]).sum(1)) - s.diagonal()).mean())


def neighbours(h: np.ndarray, y: np.ndarray, k: int) -> float:
    """Return the share of rows (n, d) whose class (n,) has the most votes exp(cos / 0.07) of the k nearest others, of equal votes the
    smaller number; NaN of fewer than two rows."""
    n = len(h)
    if n < 2:
        return math.nan
    z, (names, code) = _unit(h), np.unique(y, return_inverse=True)
    s = z @ z.T
    np.fill_diagonal(s, -np.inf)
    k = min(k, n - 1)
    near = np.argpartition(-s, k - 1, axis=1)[:, :k] if k < n - 1 else np.argsort(-s, axis=1)[:, :k]
    votes = np.zeros((n, len(names)))
    np.add.at(
        votes, (np.arange(n)[:, None], code.reshape(-1)[near]), np.exp((np.take_along_axis(s, near, 1) - 1) / VOTE)
    )
    return float((votes.argmax(1) == code.reshape(-1)).mean())


def probe(h: np.ndarray, y: np.ndarray) -> float:
    """Return the share of rows (n, d) whose class (n,) a logistic regression on standardised features finds that was trained on every other
    row, those of each class dealt to two halves in turn; NaN where a half has fewer than two classes,
    or a feature is no number."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if not np.isfinite(h).all():
        return math.nan
    half = np.zeros(len(y), int)
    for c in np.unique(y):
        at = np.flatnonzero(y == c)
        half[at] = np.arange(len(at)) % FOLDS
    right = 0.0
    for fold in range(FOLDS):
        train, test = half != fold, half == fold
        if len(np.unique(y[train])) < 2 or not test.any():
            return math.nan
        scale = StandardScaler().fit(h[train])
        fitted = LogisticRegression(max_iter=100, tol=1e-2).fit(scale.transform(h[train]), y[train])
        right += (fitted.predict(scale.transform(h[test])) == y[test]).sum()
    return float(right / len(y))
