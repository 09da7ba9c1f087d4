"""Mean features of classes, which clients send in the place of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from rayfed import PARAMS, Method, Part, Phase, Wire, tree
from rayfed.lazy import torch
from rayfed.task import needs_classes
from rayfed.visits import once

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Task, Tree
    from rayfed.partition import Federation
    from rayfed.visits import Batch


def class_means(task: Task, trained: Callable[[Tree], Tree]) -> Phase:
    """Return a phase after training, over all training rows in evaluation mode: carry -> {"inner": carry, "rows", "sums"}.

    trained: inner carry -> the model whose features are meant. `means` reads what it gives.
    """

    def enter(client: ClientContext, carry: Tree) -> Tree:
        zeros = torch.zeros(task.classes, task.feature_size, dtype=task.dtype, device=task.device)
        return {"inner": carry, "rows": zeros[:, 0], "sums": zeros}

    def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
        h = task.features(trained(carry["inner"]), batch["x"])
        of_class = one_hot(batch["y"], task.classes, h.dtype) * batch["w"].to(h.dtype)[:, None]  # (B, C)
        return {**carry, "rows": carry["rows"] + of_class.sum(0), "sums": carry["sums"] + of_class.T @ h}

    return Phase(once("train"), step, enter, counts=False)


def one_hot(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Return (B, C), 1 at each row's label; torch's own reads labels, which `vmap` of a gradient forbids."""
    return (y[:, None] == torch.arange(classes, device=y.device)).to(dtype)


def means(carry: Tree) -> Tensor:
    """Return the mean features (C, d) after `class_means`; zeros for a class that the client lacks."""
    return carry["sums"] / carry["rows"].clamp(min=1)[:, None]


def weights(carry: Tree, weight: str) -> Tensor:
    """Return what each class mean counts in an average over clients, (C,): its rows with "examples"; 1 with "one", 0 without rows."""
    return carry["rows"] if weight == "examples" else (carry["rows"] > 0).to(carry["rows"].dtype)


def average(sums: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    """Return weighted sums (C, d) over weights (C,); of a class that nobody sent, the row of `before`."""
    return torch.where((weight > 0)[:, None], sums / weight.clamp(min=1)[:, None], before)


def nearest(h: Tensor, prototypes: Tensor, known: Tensor, otherwise: Tensor) -> Tensor:
    """Return minus the squared distances of features (B, d) to prototypes (C, d), as logits (B, C).

    Classes without a prototype (known (C,) is 0) get 30 less than the least of the others, so that they are never predicted; where
    no class has one, the logits are `otherwise`, (B, C).
    """
    near = -(h[:, None, :] - prototypes).square().sum(-1)
    there = known > 0
    least = torch.where(there, near, torch.inf).amin(-1, keepdim=True)
    return torch.where(there.any(), torch.where(there, near, torch.where(there.any(), least - 30, 0.0)), otherwise)


def answer(task: Task, model: Tree, x: Tensor) -> Tensor:
    """Return logits (B, C) of {"own": params, "prototypes", "known"}: `nearest`, or the own last layer's before there is a prototype."""
    h = task.features(model["own"], x)
    head = task.classify(task.classifier(model["own"]), h)
    return nearest(h, model["prototypes"], model["known"], head)


def cost(part: str, sent: Any) -> int:
    """Return the bytes of a part: of what there is per class, (k, C, ...), only the rows that are not zero."""
    if isinstance(sent, dict) or part not in ("prototypes", "counts", "known"):
        return tree.nbytes(sent)
    rows = (sent != 0).reshape(*sent.shape[:2], -1)
    return int(rows.any(-1).sum()) * rows.shape[2] * sent.element_size()


class OwnModel(Method):
    """Base: every client has a model of its own that never travels, and there is none at the server.

    v_i^0 is the run's initial model, which a client that never took part, a held-out one too, is served as well.
    """

    wire: ClassVar[Wire] = Wire(keep={"model": Part(PARAMS, private=True, note="v_i")})
    universal: ClassVar[str | None] = None

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, f"{self.config.method.name} sends mean features of classes")

    def splits_model(self) -> bool:
        return True

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"model": task.initial}

    def cost(self, part: str, sent: Tree) -> int:
        return cost(part, sent)
