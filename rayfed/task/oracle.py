"""Functions of a point, each client its own, of which methods may ask values alone: the squared distance from the client's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rayfed.metrics import MEASURES, Measure
from rayfed.task import TaskKind

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Oracle(TaskKind):
    """Find the point z of D numbers (`task.model: point`) that minimises sum_i w_i f_i(z), f_i(z) the mean over client i's rows of
    |z - y|^2 / D.

    Batches have y (B, D). The point of least mean is known, that of the rows' mean, so that a run shows how far away it is. Methods that
    take gradients may train it, too; those of zeroth order (`fzoos`, `fedzo`) ask for values alone, of any kind of task.
    """

    reads: ClassVar[tuple[str, ...]] = ("numbers",)
    offers: ClassVar[frozenset[str]] = frozenset({"numbers"})
    models: ClassVar[tuple[str, ...]] = ("point",)
    predicts: ClassVar[str] = "numbers"
    measures: tuple[Measure, ...] = (
        MEASURES["loss"]._replace(unit="-", text="squared distance from the point to a row, over D"),
    )

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the squared distance from each row over D, (B,)."""
        return self.judge_mean(self.apply(params, batch["x"]), batch)["loss"]

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return the loss of each row, (B,), of points (B, D)."""
        return {"loss": ((p - batch["y"].reshape(p.shape)) ** 2).mean(-1)}
