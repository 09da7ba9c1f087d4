"""A task: the model as functions of its parameters, the loss and the metrics. Resident in every actor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayfed import keys
from rayfed.lazy import F, torch
from rayfed.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config import Config
    from rayfed.partition import Federation


class Task:
    """Classification with a network of `rayfed.models`.

    classes: C; input_shape: of one example; population: N, the clients that can take part; params_like: zeros,
    {parameter name: tensor}; head: names of the classifier's parameters. Every function is pure in `params` and works
    under `torch.func` transforms.
    """

    def __init__(self, config: Config, federation: Federation, device: str = "cpu", start: Tree | None = None):
        from rayfed import models

        self.config, self.device = config, device
        self.classes, self.input_shape = federation.classes, tuple(federation.input_shape)
        self.population = federation.population
        self.dtype = torch.float64 if config.task.dtype == "float64" else torch.float32
        self._build = lambda: models.build(config.task.model, self.classes, self.input_shape)
        with torch.random.fork_rng(devices=[]):
            self._module = self._build().to(device=device, dtype=self.dtype).eval().requires_grad_(False)
        self.params_like: dict[str, Tensor] = {n: torch.zeros_like(p) for n, p in self._module.named_parameters()}
        self.head = tuple(n for n in self.params_like if n.split(".")[0] == "head")
        self._start = start
        self._initial: Tree | None = None

    @property
    def initial(self) -> Tree:
        """The run's initial parameters: from the seed, or from `init.from`."""
        if self._initial is None:
            self._initial = self.init_params(keys.key(self.config.seed, 0, -1, "init"))
        return self._initial

    def init_params(self, key: int) -> Tree:
        """Fresh parameters drawn from `key` (PyTorch's own initialisation), or those of `init.from`."""
        if self._start is not None:
            return {n: torch.as_tensor(p).to(self.device, self.dtype) for n, p in self._start.items()}
        return self.fresh_params(key)

    def fresh_params(self, key: int) -> Tree:
        """Fresh parameters drawn from `key`, whatever `init.from` says (IFCA's other experts)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            return {n: p.detach().to(self.device, self.dtype) for n, p in self._build().named_parameters()}

    def apply(self, params: Tree, x: Tensor) -> Tensor:
        """Logits (B, C) of inputs (B, *input_shape)."""
        return torch.func.functional_call(self._module, params, (x,))

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Cross-entropy of each example, (B,)."""
        return F.cross_entropy(self.apply(params, batch["x"]), batch["y"], reduction="none")

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Class probabilities (B, C)."""
        return torch.softmax(self.apply(params, batch["x"]), -1)

    def metrics(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """loss and accuracy of each example, (B,)."""
        return self.judge(torch.log_softmax(self.apply(params, batch["x"]), -1), batch["y"])

    def judge(self, log_probs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """loss and accuracy of log probabilities (B, C) against labels (B,)."""
        return {
            "loss": -log_probs.gather(-1, y[..., None])[..., 0],
            "accuracy": (log_probs.argmax(-1) == y).to(log_probs.dtype),
        }
