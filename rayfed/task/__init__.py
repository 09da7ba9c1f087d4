"""A task: the model as functions of its parameters, the loss and the metrics. Resident in every actor."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from rayfed import keys
from rayfed.errors import ConfigError
from rayfed.lazy import F, torch
from rayfed.tree import Tree

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from rayfed.config import Config
    from rayfed.partition import Federation


class Task:
    """Classification with a network of `rayfed.models`.

    classes: C; input_shape: of one example; kind: of the data, image | tabular | text; population: N, the clients that can
    take part; params_like: zeros, {name of a trained parameter: tensor}; head: names of the classifier's parameters. Every
    function is pure in `params` and works under `torch.func` transforms.
    """

    def __init__(self, config: Config, federation: Federation, device: str = "cpu", start: Any = None):
        from rayfed import models

        self.config, self.device = config, device
        self.classes, self.input_shape = federation.classes, tuple(federation.input_shape)
        self.population, self.kind = federation.population, federation.kind
        self.dtype = torch.float64 if config.task.dtype == "float64" else torch.float32
        start = start or {}
        self._build = lambda: models.build(config.task.model, self.classes, self.input_shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keys.key(config.seed, 0, -1, "what is not trained"))
            if start.get("base") is not None:
                from rayfed.models import pretrained

                module = pretrained.build(config, self.classes, federation.kind, start["base"])
            else:
                module = self._build()
        trained = {n for n, p in module.named_parameters() if p.requires_grad}
        self._module = module.to(device=device, dtype=self.dtype).eval().requires_grad_(False)
        self.params_like: dict[str, Tensor] = {
            n: torch.zeros_like(p) for n, p in self._module.named_parameters() if n in trained
        }
        head = getattr(module, "head_names", None)
        self.head = tuple(n for n in self.params_like if n.split(".")[0] == "head") if head is None else head
        self._start = start.get("params")
        self._initial: Tree | None = None

    @property
    def initial(self) -> Tree:
        """The run's initial parameters: from the seed, or from `init.from`."""
        if self._initial is None:
            self._initial = self.init_params(keys.key(self.config.seed, 0, -1, "init"))
        return self._initial

    def init_params(self, key: int) -> Tree:
        """Fresh parameters drawn from `key` (PyTorch's own initialisation), or those of `init.from`."""
        if self._start is None:
            return self.fresh_params(key)
        given = {n: torch.as_tensor(p).to(self.device, self.dtype) for n, p in self._start.items()}
        missing = [n for n in self.params_like if n not in given and n not in self.head]
        wrong = [n for n, p in given.items() if n not in self.params_like or p.shape != self.params_like[n].shape]
        if missing or wrong:
            raise ConfigError(
                f"init.from: {self.config.init.from_!r} is of another model or adapter: "
                + "; ".join(
                    f"{what} {names[0]} ({len(names)} in all)"
                    for what, names in (("without", missing), ("misfit", wrong))
                    if names
                )
            )
        return {**(self.fresh_params(key) if len(given) < len(self.params_like) else {}), **given}

    def fresh_params(self, key: int) -> Tree:
        """Fresh parameters drawn from `key`, whatever `init.from` says (IFCA's other experts)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            if hasattr(self._module, "redraw"):  # what is pretrained stays
                self._module.redraw()
                found = dict(self._module.named_parameters())
                return {n: found[n].detach().clone() for n in self.params_like}
            drawn = {n: p.detach().to(self.device, self.dtype) for n, p in self._build().named_parameters()}
            return {n: drawn[n] for n in self.params_like}

    def some_params(self, words: str) -> Tree:
        """Zeros of some trained parameters, by the words of a part "params of WORDS": `head` is the classifier, any other word
        takes the names that have it between their dots. "lora_A, head"
        """
        wanted = {w.strip() for w in words.split(",")}
        head = set(self.head)
        return {
            n: p
            for n, p in self.params_like.items()
            if ("head" in wanted and n in head) or (wanted - {"head"}) & set(n.split("."))
        }

    def publish(self, params: Tree, where: Path) -> None:
        """Write a trained tree in the format of its model's own library into `where`, if it has one (PEFT, transformers)."""
        if hasattr(self._module, "publish"):
            self._module.publish(params, where)

    @cached_property
    def frozen(self) -> Tree:
        """What is not trained, {name of a parameter: tensor}; never written to, since actors share it."""
        return {n: p for n, p in self._module.named_parameters() if n not in self.params_like}

    def layer(self, name: str) -> Any:
        """The network's module of that name, to look at."""
        return self._module.get_submodule(name)

    def apply(self, params: Tree, x: Tensor) -> Tensor:
        """Logits (B, C) of inputs (B, *input_shape). What `params` names of `frozen` stands in its place."""
        return torch.func.functional_call(self._module, params, (x,))

    # -- the model in two: features and classifier -------------------------------------------------------------------

    @cached_property
    def _classifier(self) -> tuple[str, Any]:
        """Name and module of the linear layer that makes logits (B, C) of features (B, d); ConfigError without one."""
        calls: list[tuple[str, Any, Any, Any]] = [("", None, torch.empty(()), None)]
        hooks = [
            m.register_forward_hook(lambda m, args, out, n=n: calls.append((n, m, args[0], out)))
            for n, m in self._module.named_modules()
            if isinstance(m, torch.nn.Linear)
        ]
        try:
            with torch.no_grad():
                kind = torch.int32 if self.kind == "text" else self.dtype
                logits = self._module(torch.zeros(1, *self.input_shape, dtype=kind, device=self.device))
        finally:
            for h in hooks:
                h.remove()
        name, module, features, out = calls[-1]
        if out is not logits or features.dim() != 2 or f"{name}.weight" not in self.params_like:
            raise ConfigError(
                f"task.model: {self.config.task.model.name} does not end in a torch.nn.Linear on features (B, d), and "
                f"method {self.config.method.name} needs the model in two; allowed: all ready models, or a forward that "
                "returns what such a layer gives"
            )
        return name, module

    @property
    def feature_size(self) -> int:
        """d, the size of the penultimate representation. ConfigError if the model does not end in a linear layer."""
        return int(self._classifier[1].in_features)

    def features(self, params: Tree, x: Tensor) -> Tensor:
        """The penultimate representation (B, d) of inputs: what the model's last linear layer is given."""
        seen: list[Tensor] = []
        hook = self._classifier[1].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        try:
            self.apply(params, x)
        finally:
            hook.remove()
        return seen[-1]

    def classifier(self, params: Tree) -> Tree:
        """The last linear layer's own parameters: {"weight": (C, d)}, and "bias": (C,) if it has one."""
        return {n.rpartition(".")[2]: params[n] for n in self.classifier_names}

    @property
    def classifier_names(self) -> tuple[str, ...]:
        """Names of the last linear layer's parameters."""
        name = self._classifier[0]
        return tuple(n for n in (f"{name}.weight", f"{name}.bias") if n in self.params_like)

    def classify(self, classifier: Tree, h: Tensor) -> Tensor:
        """Logits (B, C) of features (B, d): `classify(classifier(params), features(params, x))` is `apply(params, x)`."""
        return F.linear(h, classifier["weight"], classifier.get("bias"))

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
