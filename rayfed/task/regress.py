"""Numbers for each example: squared or absolute error, in units of the training rows' deviation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed.lazy import F, torch
from rayfed.metrics import MEASURES, Measure
from rayfed.task import TaskKind, TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.tree import Tree


class Regress(TaskKind):
    """Learn one number for each example, or T of them.

    Batches have y (B,) or (B, T). The network learns a target less the mean of the training rows' over their deviation (which are worked
    out before rows are dealt, as those of features are), so that rates do not depend on the target's unit; what `apply` answers, `mae` and
    `rmse` are in that unit. loss: of the standardised residual r, the mean over the T numbers of r^2 / 2, |r|, or Huber's.
    """

    class Settings(TaskSettings):
        loss: Literal["squared", "absolute", "huber"] = Field(
            "squared",
            description="Of a standardised residual r: r^2 / 2, |r|, or r^2 / 2 up to 1 and |r| - 1/2 from there (Huber).",
        )

    reads: ClassVar[tuple[str, ...]] = ("numbers",)
    offers: ClassVar[frozenset[str]] = frozenset({"numbers", "features"})
    predicts: ClassVar[str] = "numbers"
    usual: ClassVar[tuple[str, ...]] = ("rmse",)
    measures: tuple[Measure, ...] = (
        MEASURES["loss"]._replace(unit="-", text="loss of the standardised residual"),
        MEASURES["mae"],
    )

    def __init__(self, config: Config, federation: Federation, device: str = "cpu", start: Any = None):
        super().__init__(config, federation, device, start)
        assert self.targets is not None
        like: Any = {"dtype": self.dtype, "device": device}
        self._mean, self._deviation = (torch.tensor(v, **like) for v in (self.targets.mean, self.targets.deviation))

    def apply(self, params: Tree, x: Tensor) -> Tensor:
        """Return predicted numbers (B, T) of inputs, in the target's unit."""
        return super().apply(params, x) * self._deviation + self._mean

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the loss of each example, (B,)."""
        with self.training(batch, key):
            answer = self.apply(params, batch["x"])
        return self._loss(answer, batch["y"])

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Return predicted numbers, shaped as y."""
        return self.apply(params, batch["x"]).reshape(batch["y"].shape)

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return loss and absolute error of each example, (B,), of predictions shaped as y."""
        error = (p - batch["y"]).abs().reshape(len(p), -1).mean(-1)
        return {"loss": self._loss(p, batch["y"]), "mae": error}

    def _loss(self, answer: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each row, (B,), of answers and targets of as many numbers."""
        r = (answer - y.reshape(answer.shape)).reshape(len(answer), -1) / self._deviation
        if self.settings.loss == "squared":
            return (r**2 / 2).mean(-1)
        if self.settings.loss == "absolute":
            return r.abs().mean(-1)
        return F.smooth_l1_loss(r, torch.zeros_like(r), reduction="none").mean(-1)
