"""A task: the model as functions of its parameters, the loss and the metrics. Resident in every actor."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from rayfed import keys
from rayfed.adapters import ranks
from rayfed.errors import ConfigError
from rayfed.execute.tuning import kernels
from rayfed.lazy import F, torch
from rayfed.tree import Tree

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation


KINDS = {"instruct": ("rayfed.task.instruct", "Instruct")}  # kind of the data -> its task, where that is not `Task`


def of(kind: str) -> type[Task]:
    """The task of data of a kind."""
    if kind not in KINDS:
        return Task
    module, name = KINDS[kind]
    found: type[Task] = getattr(importlib.import_module(module), name)
    return found


def needs_classes(federation: Federation, why: str) -> list[str]:
    """What a method's `fits` says where it reads logits of classes, (B, C), and the task's are of tokens; why: for what."""
    if of(federation.kind).per_class:
        return []
    return [f"method.name: {why}; task.data holds instructions, for which a model gives probabilities of tokens"]


class Task:
    """Give a method its model, loss and metrics as functions of the trained parameters: classification with `rayfed.models`.

    Attributes:
        classes: C; input_shape: of one example; kind: of the data, image | tabular | text | instruct.
        population: N, the clients that can take part.
        params_like: zeros, {name of a trained parameter: tensor}; initial: the run's first parameters, alike.
        head: names of the classifier's parameters, maybe none.
        dtype, device: of tensors that are made beside the parameters.

    Every function is pure in `params` and works under `torch.func` transforms, under `vmap` where `vectorize` is True and no
    reason against it. Batches are {"x": (B, *input_shape), "y": (B,), "w": (B,) 1 or 0 on padding}; losses and metrics are of
    each example, (B,), padding included. ConfigError where a model is asked for what it does not have (`features`).

    Example: `task` as a method is given it.

        >>> batch = {"x": torch.zeros(2, *task.input_shape), "y": torch.tensor([0, 1]), "w": torch.ones(2)}
        >>> task.apply(task.initial, batch["x"]).shape == (2, task.classes)
        True
        >>> gradient = torch.func.grad(lambda params: task.loss(params, batch).mean())(task.initial)
        >>> gradient.keys() == task.params_like.keys()
        True
        >>> sorted(task.metrics(task.initial, batch))
        ['accuracy', 'loss']
    """

    per_class: ClassVar[bool] = True  # whether `apply` gives logits of classes, (B, C)
    measures: ClassVar[tuple[str, ...]] = ("loss", "accuracy")  # what `metrics` gives of each example
    mixture: ClassVar[str] = (
        ""  # what scores of a mixture of models mean, where it is not the mixture's own loss and accuracy
    )

    def __init__(self, config: Config, federation: Federation, device: str = "cpu", start: Any = None):
        from rayfed import models

        self.config, self.device = config, device
        self.classes, self.input_shape = federation.classes, tuple(federation.input_shape)
        self.population, self.kind = federation.population, federation.kind
        self.ranks = ranks.drawn(config, federation.population, federation.clients)
        self.dtype = torch.float64 if config.task.dtype == "float64" else torch.float32
        start = start or {}
        self._build = lambda: models.build(config.task.model, self.classes, self.input_shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keys.key(config.seed, 0, -1, "what is not trained"))
            if start.get("base") is not None:
                from rayfed.models import pretrained

                module = pretrained.build(config, self.classes, federation.kind, start["base"], self.input_shape)
            else:
                module = self._build()
        trained = {n for n, p in module.named_parameters() if p.requires_grad}
        self.half = config.task.dtype == "bf16"
        self._places: dict[str, Any] | None = None
        self._halved: set[str] = set()
        if (
            self.half
        ):  # what is frozen stays in bfloat16; what is trained beside it in one layer is cast for the forward pass
            for n in sorted(trained):
                layer = module.get_submodule(n.rpartition(".")[0])
                if any(not q.requires_grad for q in layer.parameters(recurse=False)):
                    self._halved.add(n)
            for n, p in module.named_parameters():
                p.data = p.data.to(self.dtype) if n in trained else p.data
        else:
            module = module.to(dtype=self.dtype)
        if config.task.model.options.get("device_map") is not None and start.get("base") is not None:
            module, self._places = pretrained.placed(module, config.task.model.options["device_map"], device)
        else:
            module = module.to(device=device)
        self.vectorize: bool | str = getattr(module, "vectorize", True)
        self._module = module.eval().requires_grad_(False)
        self.params_like: dict[str, Tensor] = {
            n: torch.zeros_like(p, device=device) for n, p in self._module.named_parameters() if n in trained
        }
        head = getattr(module, "head_names", None)
        self.head = tuple(n for n in self.params_like if n.split(".")[0] == "head") if head is None else head
        # Of the client at work; copies of the task share it.
        self._during: dict[str, Any] = {"scale": None, "key": None}
        for m in module.modules():
            if hasattr(m, "during"):
                m.during = self._during
        self._start = start.get("params")
        self._initial: Tree | None = None

    @property
    def initial(self) -> Tree:
        """The run's initial parameters: from the seed, or from `init.from`."""
        if self._initial is None:
            self._initial = self.init_params(keys.key(self.config.seed, 0, -1, "init"))
        return self._initial

    def init_params(self, key: int) -> Tree:
        """Fresh parameters drawn from `key` (PyTorch's own initialisation), or those of `init.from`; a pretrained model's own
        classifier where it fits."""
        if self._start is None:
            return self._drawn(key, False)
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
        return {**(self._drawn(key, False) if len(given) < len(self.params_like) else {}), **given}

    def fresh_params(self, key: int) -> Tree:
        """Fresh parameters drawn from `key`, whatever `init.from` or a pretrained model's classifier is (IFCA's other experts)."""
        return self._drawn(key, True)

    def _drawn(self, key: int, everything: bool) -> Tree:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            if hasattr(self._module, "redraw"):  # what is pretrained stays
                found = {n: p for n, p in self._module.named_parameters() if n in self.params_like}
                held = {n: p.data for n, p in found.items()}
                for n, p in found.items():  # drawn on the CPU, so that server and actors hold the same on any device
                    p.data = p.data.to("cpu", copy=n in self.head)  # a head of the checkpoint's is shared
                self._module.redraw(everything)
                fresh = {n: found[n].detach().to(self.device, copy=True) for n in self.params_like}
                for n, p in found.items():
                    p.data = held[n]
                return fresh
            drawn = {n: p.detach().to(self.device, self.dtype) for n, p in self._build().named_parameters()}
            return {n: drawn[n] for n in self.params_like}

    def publish(self, params: Tree, where: Path, rank: int | None = None) -> None:
        """Write a trained tree in the format of its model's own library into `where`, if it has one (PEFT, transformers).

        rank: of a LoRA that has zeros beyond it, default the largest.
        """
        if hasattr(self._module, "publish"):
            self._module.publish(params, where, rank)

    @cached_property
    def frozen(self) -> Tree:
        """What is not trained, {name of a parameter: tensor}; never written to, since actors share it."""
        return {n: p for n, p in self._module.named_parameters() if n not in self.params_like}

    def module(self) -> Any:
        """A copy of the network, what is frozen in it included; what is trained has the values it was built with."""
        return copy.deepcopy(self._module)

    def layer(self, name: str) -> Any:
        """The network's module of that name, to look at."""
        return self._module.get_submodule(name)

    def apply(self, params: Tree, x: Tensor) -> Tensor:
        """Logits (B, C) of inputs (B, *input_shape). What `params` names of `frozen` stands in its place.

        Texts may be word embeddings (B, L, d) instead of token ids.
        """
        by = self._during["scale"]
        if by is not None:
            params = {n: p * by.to(p.dtype) if ranks.is_b(n) else p for n, p in params.items()}
        if self._halved:
            params = {n: p.to(torch.bfloat16) if n in self._halved else p for n, p in params.items()}
        if self._places is not None:
            params = {n: p.to(self._places[n]) for n, p in params.items()}
        params = kernels.in_memory_format(params)
        with self._precision():
            return torch.func.functional_call(self._module, dict(params), (x,)).to(self.dtype)

    @cached_property
    def word_spread(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each dimension of a text model's word embeddings over its vocabulary, (d,) each."""
        with torch.no_grad():
            mean, deviation = self._module.spread()
        return mean.to(self.device, self.dtype), deviation.to(self.device, self.dtype)

    def _precision(self) -> Any:
        # No cache of casts: one made inside a transform would outlive it.
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.half, cache_enabled=False)

    def scaled(self, factor: Any) -> Any:
        """Within it B A counts `factor` (0-d tensor) times, None for once: a client's own alpha / r_i."""
        return self._while(scale=factor)

    def dropping(self, key: Any) -> Any:
        """Within it dropout inside adapters draws from a training step's key; None for no dropout."""
        return self._while(key=key)

    @contextmanager
    def _while(self, **what: Any) -> Iterator[None]:
        before = dict(self._during)
        self._during.update(what)
        try:
            yield
        finally:
            self._during.update(before)

    def read_by(self, logits: Callable[[Tree, Tensor], Tensor]) -> Task:
        """This task with other logits(model, x) in place of `apply`, for models that are not one network's parameters."""
        made = copy.copy(self)
        made.apply = logits  # type: ignore[method-assign, assignment]
        return made

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
            with torch.no_grad(), self._precision():
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
        return seen[-1].to(self.dtype)

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
        """Cross-entropy of each example, (B,); with the step's key, dropout inside adapters draws from it."""
        with self.dropping(key):
            logp = torch.log_softmax(self.apply(params, batch["x"]), -1)
        # F.cross_entropy's bits; vmap takes that one apart in Python
        return -logp.gather(-1, batch["y"][:, None])[:, 0]

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Class probabilities (B, C)."""
        return torch.softmax(self.apply(params, batch["x"]), -1)

    def metrics(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """loss and accuracy of each example, (B,)."""
        return self.judge(torch.log_softmax(self.apply(params, batch["x"]), -1), batch["y"])

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """loss and accuracy of each example, (B,), of a weighted mean of `predict`s."""
        return self.judge(torch.log(p.clamp(min=1e-12)), batch["y"])

    def judge(self, log_probs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """loss and accuracy of log probabilities (B, C) against labels (B,)."""
        return {
            "loss": -log_probs.gather(-1, y[..., None])[..., 0],
            "accuracy": (log_probs.argmax(-1) == y).to(log_probs.dtype),
        }
