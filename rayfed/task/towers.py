"""Classes known by their names: a picture is compared with texts, in a space that an image tower and a text tower share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import keys
from rayfed.lazy import torch
from rayfed.models import folder
from rayfed.task import Task, TaskSettings
from rayfed.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation


class Towers(Task):
    """Learn classes by their names: logits are cosines of a picture and the classes' texts, times a scale (CLIP, Radford et al. 2021).

    What is trained are prompts in one tower or both (`adapter: prompts`), or both towers whole (`adapter: none`). Untrained it is the
    zero-shot classifier. `loss` compares with the names of those classes that clients may have; scores compare with all.

    Attributes:
        base, new: numbers of the classes that clients may have and of those that none has, (n,) each; place: of each class among
            the base ones, (C,), 0 for new ones.
        anchors: the frozen features (C, d) of the classes, of their names within the templates.
        plain: trained entries under which the image tower is the frozen one: no visual prompts.
    """

    class Settings(TaskSettings):
        templates: list[str] = Field(
            ["a picture of a {}."],
            min_length=1,
            description="Sentences with {} in a name's place; the mean of their features is a class's, where no text token is learned.",
        )
        temperature: float | None = Field(
            None, gt=0, description="What cosines are divided by; null: what the pair was trained with."
        )

    offers: ClassVar[frozenset[str]] = frozenset({"classes", "towers"})
    models: ClassVar[tuple[str, ...]] = ("two_tower",)

    def __init__(self, config: Config, federation: Federation, device: str = "cpu", start: Any = None):
        self._texts = torch.as_tensor(federation.texts)
        super().__init__(config, federation, device, start)
        self._during["tower"] = None
        new = list(federation.new_classes)
        self.new = torch.tensor(new, dtype=torch.int64, device=self.device)
        self.base = torch.tensor([c for c in range(self.classes) if c not in new], device=self.device)
        # All of these before the first visit: what is made within a transform may not outlive it.
        self.anchors: Tensor = self.layer("").anchors.to(self.dtype)
        self.plain: Tree = {n: p[:0] for n, p in self.params_like.items() if n.endswith(".vpt.tokens")}
        self.place = torch.zeros(self.classes, dtype=torch.int64, device=self.device)
        self.place[self.base] = torch.arange(len(self.base), device=self.device)

    @classmethod
    def problems(cls, config: Config, federation: Federation) -> list[str]:
        """Return why classes cannot be known by their names: images, and a model with two towers, are needed."""
        name = config.task.model.name
        if not folder.is_pair(name):
            return [
                f"task.kind: towers found, task.model: {name} has no two towers; allowed: two_tower, hf:DIR of a "
                f"{', '.join(folder.PAIRS)} model"
            ]
        if federation.kind != "image":
            return [f"task.kind: towers found, task.data is {federation.kind}; allowed: images"]
        return []

    def _network(self, base: Any) -> Any:
        from rayfed.models import pair

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keys.key(self.config.seed, 0, -1, "what is not trained"))
            return pair.build(self.config, base, self.input_shape, self._texts)

    # -- the towers ----------------------------------------------------------------------------------------------------

    def image_features(self, params: Tree, x: Tensor) -> Tensor:
        """Return features (B, d) of length 1 of pictures (B, *input_shape); within a training step they are augmented as `apply`'s."""
        with self._while(tower="image"):
            return self.apply(params, x)

    def class_features(self, params: Tree, classes: Tensor | None = None) -> Tensor:
        """Return features (n, d) of length 1 of classes by their numbers (n,), each read once; None: of all, (C, d)."""
        if classes is None or len(classes) >= self.classes:
            every = torch.arange(self.classes, device=self.device)
            found = self._read(params, every, "classes")
            return found if classes is None else found[classes]
        return self._read(params, classes, "classes")

    def text_features(self, params: Tree, ids: Tensor) -> Tensor:
        """Return features (n, d) of length 1 of texts as token ids (n, L), -1 on padding, without prompts."""
        return self._read(params, ids, "text")

    def _read(self, params: Tree, x: Tensor, tower: str) -> Tensor:
        with self._while(tower=tower, mixed=True):  # mixed: no augmentation, which is of pictures
            return self.apply(params, x)

    @property
    def scale(self) -> Any:
        """Return what cosines are multiplied by."""
        return self.layer("").scale

    def zero_shot(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of pictures without any prompt, by `anchors`."""
        return self.scale * (self.image_features(self.plain, x) @ self.anchors.T)

    # -- learning ------------------------------------------------------------------------------------------------------

    def logits_of(self, params: Tree, x: Tensor, classes: Tensor) -> Tensor:
        """Return logits (B, n) of pictures against some classes (n,), whose names alone are read."""
        return self.scale * (self.image_features(params, x) @ self.class_features(params, classes).T)

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return cross-entropy (B,) against the classes that clients may have."""
        if not len(self.new):
            return super().loss(params, batch, key)
        with self.training(batch, key):
            logits = self.logits_of(params, batch["x"], self.base)
        return self.cross_entropy(logits, self.place[batch["y"].long()], key)
