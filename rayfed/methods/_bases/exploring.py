"""What FedLEx and AutoFLIP share: before they train, some clients show which parameters move far from the first model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from rayfed import MethodSettings, mean, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.one_model import OneModel
from rayfed.visits import epochs

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit


class ExploringSettings(MethodSettings):
    """Settings of the exploration."""

    explorers: float = Field(0.3, gt=0, le=1, description="Share of the clients that explore.")
    explore_epochs: int = Field(5, ge=1, description="Local epochs of an explorer.")


class Exploring(OneModel):
    """Base: a round in which explorers q train from theta_0, each by itself, and send (theta_q - theta_0)^2, element by element."""

    @visit
    def explore(self, task: Task) -> Visit:
        """Train from the first model, and send how far each parameter went, squared."""

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            moved = tree.sub(carry["model"], client.shared["model"])
            return {"squares": tree.map(torch.square, moved)}, client.own

        settings: Any = self.settings
        return sgd_visit(task.loss, self.local, phases=[(epochs(settings.explore_epochs), lambda name: True)], end=end)

    def explored(self, state: Tree, fed: Fed) -> Tree | None:
        """Return D = mean_q (theta_q - theta_0)^2, None where nobody replied."""
        settings: Any = self.settings
        number = max(1, round(settings.explorers * fed.population))
        shared, fold = {"model": state["model"]}, mean("squares", weight="one")
        found = fed.ask(self.explore, fed.sample(number), shared=shared, fold=fold)
        return found.folded["squares"] if found.ids else None


def spread(squares: Tensor, robust: bool = False) -> Tensor:
    """Return G of one tensor of D: (D - min) / (max - min), or (D - median) / (q75 - q25) cut to [0, 1]; 1 where all of D is equal."""
    if robust:
        low, quarter, three = (quantile(squares, q).to(squares.dtype) for q in (0.5, 0.25, 0.75))
        span = three - quarter
    else:
        low, span = squares.min(), squares.max() - squares.min()
    scaled = ((squares - low) / torch.where(span > 0, span, 1.0)).clamp(0, 1)
    return torch.where(span > 0, scaled, 1.0)


def quantile(x: Tensor, q: float) -> Tensor:
    """Return the q-quantile of all entries, linear between neighbours, of any number of them; 0-d float64."""
    ordered = x.flatten().double().sort().values
    at = q * (len(ordered) - 1)
    low = int(at)
    return torch.lerp(ordered[low], ordered[min(low + 1, len(ordered) - 1)], at - low)
