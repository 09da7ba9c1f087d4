"""Whole Pareto fronts: a network from preferences to solutions of several problems, each given by its formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import fronts, keys
from rayfed.lazy import torch
from rayfed.metrics import MEASURES, Measure
from rayfed.models import KNOWN
from rayfed.task import TaskKind, TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.tree import Tree

PURPOSE = 417  # of the key's draw that is for preferences
CORNER = 1e-4  # added to every entry of a preference, since 1 / p grows without bound at the simplex' corners


class Pareto(TaskKind):
    """Learn the fronts of problems of as many objectives each (Pareto set learning, Lin et al. 2022, 2203.15386).

    A row is a preference x (m,) for problem y. The network answers all N problems, (B, N, outputs); a sigmoid of a problem's first n_i
    outputs is its solution, in float64, and F its objectives there, over the nadir with `scale: nadir`. loss, of preference p:
    mtch: max_j F_j / p_j + `augment` sum_j F_j; tch: with p_j F_j; ls: sum_j p_j F_j; cosmos: ls - `gamma` cos(p, F). In training p is
    drawn anew in every step, evenly from the simplex, with 1e-4 added to every entry. hypervolume, range and sparsity are of the rows of a
    problem, over its nadir and with reference 1.1, and of rows of several problems the mean over these.
    """

    class Settings(TaskSettings):
        loss: Literal["mtch", "tch", "ls", "cosmos"] = Field("mtch", description="How objectives become one number.")
        augment: float = Field(0.01, ge=0, description="Weight of the objectives' sum in mtch and tch.")
        gamma: float = Field(
            100.0, description="Weight of the cosine in cosmos; the code that CoPSL was published with has -100."
        )
        scale: Literal["nadir", "none"] = Field(
            "nadir", description="Whether the loss reads objectives over the nadir; none: as they are (the code)."
        )

    reads: ClassVar[tuple[str, ...]] = ("problems",)
    offers: ClassVar[frozenset[str]] = frozenset({"fronts"})
    models: ClassVar[tuple[str, ...]] = ("psl", "coaction")
    pooled: ClassVar[bool] = False
    measures: tuple[Measure, ...] = (
        MEASURES["loss"]._replace(unit="-", text="objectives as one number, by the preference"),
        MEASURES["hypervolume"]._replace(
            unit="-", text="hypervolume of the found front, objectives over the nadir, reference 1.1"
        ),
        Measure("range", "higher", "-", "largest less smallest of each objective on the found front, mean", "set"),
        Measure("sparsity", "lower", "-", "squared gaps on the found front, mean over the gaps", "set"),
    )

    def __init__(self, config: Config, federation: Federation, device: str = "cpu", start: Any = None):
        super().__init__(config, federation, device, start)
        self._problems = [fronts.PROBLEMS[n] for n in federation.label_names]
        nadir = [p.nadir for p in self._problems]
        self._nadir = torch.tensor(nadir, dtype=torch.float64, device=device)
        self._scale = self._nadir if self.settings.scale == "nadir" else torch.ones_like(self._nadir)

    @classmethod
    def problems(cls, config: Config, federation: Federation) -> list[str]:
        """Return why the network cannot answer these problems."""
        model = config.task.model
        if model.name not in KNOWN:
            return []
        found = {**KNOWN[model.name][1], **model.options}["outputs"]
        least = max(fronts.PROBLEMS[n].n for n in federation.label_names)
        return [f"task.model.outputs: {found} found, a problem has {least} numbers; allowed: at least that"] * (
            found < least
        )

    def answer_shape(self, rows: int) -> tuple[tuple[int | None, str], ...]:
        """Return (rows, problems, outputs), as many outputs as a problem has numbers."""
        return (rows, "rows"), (self.classes, "problems"), (max(p.n for p in self._problems), "numbers of a solution")

    def preferences(self, key: Tensor, shape: Sequence[int]) -> Tensor:
        """Return preferences (*shape, m), drawn evenly from the simplex from a key, 1e-4 added to every entry."""
        u = keys.uniform(keys.fold(key, PURPOSE), (*shape, self._nadir.shape[1]), torch.float64)
        e = -torch.log1p(-u) + 1e-12
        return (e / e.sum(-1, keepdim=True)).to(self.dtype) + CORNER

    def objectives(self, params: Tree, p: Tensor) -> Tensor:
        """Return the objectives (B, N, m) of every problem's solution at preferences (B, m), in float64."""
        x = torch.sigmoid(self.apply(params, p).double())
        return torch.stack([problem.objectives(x[:, i, : problem.n]) for i, problem in enumerate(self._problems)], 1)

    def losses(self, params: Tree, p: Tensor) -> Tensor:
        """Return the loss (B, N) of every problem at preferences (B, m)."""
        return self._scalar(self.objectives(params, p) / self._scale, p[:, None].double()).to(self.dtype)

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the loss of each row's problem, (B,); with a training step's key, at preferences drawn from it."""
        x = batch["x"]
        p = x + CORNER if key is None else self.preferences(key, x.shape[:1])
        with self.training(batch, key):
            losses = self.losses(params, p)
        return losses.gather(1, batch["y"].long()[:, None])[:, 0]

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Return the objectives of each row's problem at its preference, (B, m)."""
        found = self.objectives(params, batch["x"])
        at = batch["y"].long()[:, None, None].expand(-1, 1, found.shape[2])
        return found.gather(1, at)[:, 0].to(self.dtype)

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return the loss of each row, (B,), of objectives (B, m)."""
        scaled = p.double() / self._scale[batch["y"].long()]
        return {"loss": self._scalar(scaled, batch["x"].double() + CORNER).to(p.dtype)}

    def summary(self, rows: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, float]:
        """Return hypervolume, range and sparsity, each the mean over the problems that the rows are of."""
        y, points = np.asarray(batch["y"]), np.asarray(rows["prediction"])
        each = [points[y == k] / np.asarray(self._nadir[k].cpu()) for k in np.unique(y)]
        of = {"hypervolume": fronts.hypervolume, "range": fronts.extent, "sparsity": fronts.sparsity}
        return {name: float(np.mean([measure(e) for e in each])) for name, measure in of.items()}

    def _scalar(self, f: Tensor, p: Tensor) -> Tensor:
        """Return objectives (..., m) as one number, (...), by preferences (..., m)."""
        s = self.settings
        if s.loss == "mtch":
            return (f / p).amax(-1) + s.augment * f.sum(-1)
        if s.loss == "tch":
            return (f * p).amax(-1) + s.augment * f.sum(-1)
        plain = (f * p).sum(-1)
        if s.loss == "ls":
            return plain
        length = (f**2).sum(-1).clamp(min=1e-24).sqrt() * (p**2).sum(-1).sqrt()
        return plain - s.gamma * plain / length
