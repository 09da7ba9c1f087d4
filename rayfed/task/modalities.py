"""Classes of rows of several modalities, of which some may be absent."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Modalities(Task):
    """Learn one class for each row of several modalities: x (B, D) holds the numbers of each in turn, and at the end 1 for each one that is
    there (`rayfed.data.modalities`). What is absent is blank before a network sees it: nothing of it can leak.

    The networks `modalities` and `crossformer` have an encoder for each modality, by name (`encoders.NAME`), and fuse what they answer;
    `linear` and `mlp` take the whole row at once, which is early fusion with zeros for what is absent.
    """

    reads: ClassVar[tuple[str, ...]] = ("modalities",)
    offers: ClassVar[frozenset[str]] = frozenset({"classes", "features", "modalities"})
    models: ClassVar[tuple[str, ...]] = ("modalities", "crossformer", "linear", "mlp")

    def there(self, x: Tensor) -> Tensor:
        """Return what is there in rows (B, D): (B, M) of 0 and 1."""
        return x[:, -len(self.modalities) :]

    def without(self, x: Tensor, gone: Tensor) -> Tensor:
        """Return rows (B, D) without what `gone` (B, M) bool marks: networks blank it."""
        import torch

        m = len(self.modalities)
        return torch.cat([x[:, :-m], torch.where(gone, 0.0, x[:, -m:])], 1)

    def of_modality(self, name: str) -> tuple[str, ...]:
        """Return the names of the parameters that belong to a modality alone."""
        return tuple(
            n for n in self.params_like if n.split(".")[0] in ("encoders", "decoders") and name in n.split(".")[1:2]
        )

    def of_nobody(self, params: Tree) -> tuple[str, ...]:
        """Return the names of the parameters that belong to no single modality."""
        mine = {n for m in self.modalities for n in self.of_modality(m.name)}
        return tuple(n for n in params if n not in mine)
