"""Methods for rows of several modalities: how many rows have which, and what belongs to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed import Method, Phase
from rayfed.lazy import torch
from rayfed.visits import once

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Task, Tree
    from rayfed.task.modalities import Modalities
    from rayfed.visits import Batch


class OverModalities(Method):
    """Base of methods whose task is of kind modalities. A carry has `rows` (M,), how many training rows have each modality."""

    needs: ClassVar[frozenset[str]] = frozenset({"modalities"})

    def counting(self, task: Task) -> Phase:
        """Return a phase that counts in `rows`; it comes before training."""
        return Phase(
            once(), lambda carry, batch, key: {**carry, "rows": carry["rows"] + counted(task, batch)}, counts=False
        )


def nothing(task: Task) -> Tensor:
    """Return zeros (M,), in which rows are counted."""
    return torch.zeros(len(task.modalities), dtype=task.dtype, device=task.device)


def counted(task: Task, batch: Batch) -> Tensor:
    """Return how many rows of a batch have each modality, (M,)."""
    of: Modalities = task  # type: ignore[assignment]
    return (of.there(batch["x"]) * batch["w"][:, None]).sum(0)


def owned(task: Task, params: Tree, has: Tensor) -> Tree:
    """Return a tree of the model with 0 for what belongs to a modality of which `has` (M,) is 0."""
    of: Modalities = task  # type: ignore[assignment]
    out = dict(params)
    for i, m in enumerate(task.modalities):
        out |= {n: torch.where(has[i] > 0, params[n], 0.0) for n in of.of_modality(m.name)}
    return out


def without_others(sent: Tree) -> int:
    """Return the bytes of trees of the model, leaves (k, ...), in which what belongs to a modality that a client lacks is 0, and not
    sent."""
    total = 0
    for n, x in sent.items():
        flat = x.reshape(len(x), -1)
        mine = int((flat != 0).any(1).sum()) if n.split(".")[0] in ("encoders", "decoders") else len(x)
        total += mine * flat.shape[1] * x.element_size()
    return total
