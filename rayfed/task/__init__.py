"""A task: the model as functions of its parameters, the loss and the metrics. Resident in every actor."""

from __future__ import annotations

import contextlib
import copy
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from rayfed import augment, cut, keys, optimizers
from rayfed.adapters import ranks
from rayfed.config.own_errors import contained, describe
from rayfed.config.schema import Section
from rayfed.config.user_function import load_class
from rayfed.errors import ConfigError, FailsAgain, nearest
from rayfed.execute.tuning import kernels
from rayfed.lazy import F, torch
from rayfed.metrics import MEASURES, Measure, declare
from rayfed.training import grad, mean_loss, note_written
from rayfed.tree import Tree

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.models.training_mode import TrainingStep
    from rayfed.partition import Federation


OFFERS = {  # what a task offers to methods, as `Method.needs` and `Task.offers` have it
    "classes": "logits of classes (B, C), and one label for each example",
    "labels": "logits of labels (B, L), of which an example may have several",
    "numbers": "predicted numbers (B, T)",
    "towers": "pictures and names of classes in one space",
    "features": "a penultimate representation of whole inputs",
    "items": "scores of items (B, K), of one user",
    "pairs": "cosines of questions and passages (B, B)",
    "fronts": "objectives of several problems, at preferences (B, m)",
    "modalities": "rows of several modalities, with what is there",
    "two sides": "embeddings of two modalities of a row, which are looked for in one another",
    "reconstructions": "inputs as a network gives them back (B, *input_shape)",
    "masks": "logits of each pixel (B, K + 1, H, W)",
    "boxes": "boxes, objectness and classes of each cell of a grid (B, 5 + C, h, w)",
    "views": "several views of each input (multi-crop)",
    "tokens": "logits of the token that comes next",
    "public": "a public set (federation.public)",
    "public labels": "a public set with labels (federation.public.labels)",
}
DATA = ("image", "tabular", "text")  # kinds of data, by whose names today's one kind of task is found too


class TaskSettings(Section):
    """The own settings of a kind of task: frozen, strict, each field with a sentence and its unit."""


def names() -> list[tuple[str, str]]:
    """Return (name, one sentence) of every kind of task, for `rayfed tasks`."""
    return [(n, (get(n).__doc__ or "").strip().splitlines()[0].rstrip(".")) for n in ready()] + [
        ("path/to/file.py:Class", "your own, a subclass of rayfed.TaskKind")
    ]


def ready() -> list[str]:
    """Return the names of the kinds of this folder: classification is `Task` itself, each other one is a file."""
    return ["classify", *sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))]


def get(name: str) -> type[Task]:
    """Return the class of a kind of task by its name, or `path/to/file.py:Class`. ConfigError naming the nearest known name."""
    if ".py:" in name:
        found: type[Task] = load_class(name, Task, "task.kind")
        declare(found.measures)
        return found
    if name == "classify":
        return Task
    if name not in ready():
        known = ", ".join([*ready(), "auto", "path/to/file.py:Class"])
        raise ConfigError(f"task.kind: {name!r} is unknown{nearest(name, [*ready(), 'auto'])}; known: {known}")
    module = importlib.import_module(f"{__name__}.{name}")
    mine = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Task)]
    (made,) = [c for c in mine if c.__module__ == module.__name__]
    return made


def of(kind: str) -> type[Task]:
    """Return the task of a kind (`Federation.task`), or of a kind of data."""
    return Task if kind in DATA else get(kind)


def offers(federation: Federation) -> set[str]:
    """Return what a run's task offers to its method: words of `OFFERS`, and `columns:NAME` for each column."""
    found = {*of(federation.task).offers, *(f"columns:{n}" for n in federation.columns)}
    if len(federation.public):
        found |= {"public", "public labels"} if federation.public_labels else {"public"}
    return found


def needs_classes(federation: Federation, why: str) -> list[str]:
    """Return what a method's `fits` says where it reads logits of classes, (B, C), and the task's are of tokens; why: for what."""
    if of(federation.task).per_class:
        return []
    if federation.task == "instruct":
        what = "task.data holds instructions, for which a model gives probabilities of tokens"
    else:
        what = f"task.kind: {federation.task} has none"
    return [f"method.name: {why}; {what}"]


class Task:
    """Give a method its model, loss and metrics as functions of the trained parameters: classification with `rayfed.models`.

    Attributes:
        classes: C, or of another kind of task how many labels or numbers a model answers with; input_shape: of one example;
        kind: of the data, image | tabular | text | instruct | modalities; settings: the kind's own; modalities: what rows of the last hold.
        measures: what `metrics` and `summary` give, with direction, unit and a sentence.
        population: N, the clients that can take part.
        params_like: zeros, {name of a trained parameter or a written buffer: tensor}; initial: the run's first parameters, alike.
        head: names of the classifier's parameters, maybe none.
        buffers: names of what a training forward pass writes (running statistics, counters): entries of every model that the
            data moves and no gradient.
        counters: names of those among them that hold whole numbers; where models are aggregated, the largest of them counts.
        norms: names of the entries of normalisation layers with running statistics.
        size: parameters of the whole network, frozen ones among them.
        cut: where training steps cross from a client to a server and back (`task.split`); None where the network is whole.
        families: where clients have several models (`task.model`), name -> the task of those that have this one; family: then (N,)
            int64, the number of each client's. A visit is given its client's. A server program is given what all have in common:
            parameters of one name and shape, the last layer's among them, and no network. family_name: of the task of one family its name.
        dtype, device: of tensors that are made to go with the parameters.

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

    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    reads: ClassVar[tuple[str, ...]] = ("classes",)  # forms of targets that it can learn from (`Federation.form`)
    columns: ClassVar[tuple[str, ...]] = ()  # that the data must have beside x and y
    offers: ClassVar[frozenset[str]] = frozenset({"classes", "features"})  # words of `OFFERS`
    predicts: ClassVar[str] = (
        "classes"  # what the ready metrics of sets take `predict` for: classes | labels | numbers | ""
    )
    usual: ClassVar[tuple[str, ...]] = ()  # metrics of sets where `evaluate.metrics` does not say
    models: ClassVar[tuple[str, ...]] = (
        "linear",
        "mlp",
        "cnn",
        "resnet",
        "vit-tiny",
    )  # ready ones that it can learn with
    pooled: ClassVar[bool] = True  # whether several clients' models can answer together for any row
    per_class: ClassVar[bool] = True  # whether `apply` gives logits of classes, (B, C)
    measures: tuple[Measure, ...] = (MEASURES["loss"], MEASURES["accuracy"])
    families: Mapping[str, Task] = MappingProxyType({})
    family: np.ndarray | None = None
    family_name: str = "all"
    mixture: ClassVar[str] = (
        ""  # what scores of a mixture of models mean, where it is not the mixture's own loss and accuracy
    )

    def __init__(self, config: Config, federation: Federation, device: str = "cpu", start: Any = None):
        from rayfed import models
        from rayfed.models import pretrained, training_mode

        self.config, self.device = config, device
        self.settings: Any = self.Settings(**config.task.kind.options)
        self.measures = self.measured(self.settings)
        self.targets = federation.targets
        self.classes, self.input_shape = self.outputs(self.settings, federation), tuple(federation.input_shape)
        self.population, self.kind = federation.population, federation.kind
        self.ranks = ranks.drawn(config, federation.population, federation.clients)
        self.dtype = torch.float64 if config.task.dtype == "float64" else torch.float32
        start = start or {}
        base = start.get("base")
        self.modalities = tuple(federation.modalities)
        self._build = lambda: models.build(config.task.model, self.classes, self.input_shape, self.modalities)
        module = self._network(base)
        trained = {n for n, p in module.named_parameters() if p.requires_grad}
        self.half = config.task.dtype == "bf16"
        self._halved: set[str] = set()
        if self.half:
            self._halved = self._with_halves(module, trained)
        else:
            module = module.to(dtype=self.dtype)
        self._places: dict[str, Any] | None = None
        if config.task.model.options.get("device_map") is not None and base is not None:
            module, self._places = pretrained.placed(module, config.task.model.options["device_map"], device)
        else:
            module = module.to(device=device)
        self.vectorize: bool | str = getattr(module, "vectorize", True)
        if optimizers.is_own(config.local.optimizer):
            self.vectorize = optimizers.ALONE
        self._module = module.eval().requires_grad_(False)
        self.size = sum(p.numel() for p in module.parameters())
        # Of the client at work; copies of the task share it.
        self._during: dict[str, Any] = {"scale": None, "step": None, "mixed": False, "crossing": None}
        for m in module.modules():
            if hasattr(m, "during"):
                m.during = self._during
        self._own_buffers: dict[str, Tensor] = {}
        self._augment, self._mixup = augment.of(config)
        self._mixes_rows = False  # whether a row's answer in training depends on the other rows, normalisation aside
        self._switched, self._is_training = self._with_modes(base is not None), False
        self.buffers: tuple[str, ...] = self._written_buffers(base is not None)
        if self._mixes_rows:
            self.vectorize = "rows of a batch depend on each other in task.model, so padding must be left out"
        self.params_like: dict[str, Tensor] = {
            n: torch.zeros_like(p, device=device) for n, p in self._module.named_parameters() if n in trained
        }
        own = dict(self._module.named_buffers())
        self.params_like |= {n: torch.zeros(own[n].shape, dtype=self.dtype, device=device) for n in self.buffers}
        self._own_buffers = {n: own[n] for n in self.buffers}
        self.counters = tuple(n for n in self.buffers if not own[n].is_floating_point())
        layers = {n for n, m in self._module.named_modules() if isinstance(m, training_mode.NORMS)}
        self.norms = tuple(n for n in self.params_like if n.rpartition(".")[0] in layers)
        head = getattr(module, "head_names", None)
        self.head = tuple(n for n in self.params_like if n.split(".")[0] == "head") if head is None else head
        self._start = start.get("params")
        self._initial: Tree | None = None
        self.cut: cut.Cut | None = cut.Cut(self) if config.task.split is not None else None

    @classmethod
    def measured(cls, settings: Any) -> tuple[Measure, ...]:
        """Return what is measured under these settings; by default `measures`."""
        return cls.measures

    @classmethod
    def outputs(cls, settings: Any, federation: Federation) -> int:
        """Return how many numbers a network is built to answer with; by default one for each class, label or number."""
        return federation.answers

    @classmethod
    def problems(cls, config: Config, federation: Federation) -> list[str]:
        """Return why this data cannot be learned as the settings say; asked before anything starts. None by default."""
        return []

    @property
    def row_measures(self) -> tuple[str, ...]:
        """Return the names of the measures that are means of a number for each row, which `metrics` gives."""
        return tuple(m.name for m in self.measures if m.of == "rows")

    def _network(self, base: Any) -> Any:
        """Return the network with what is not trained drawn from the seed; base: of a pretrained one, else None."""
        from rayfed.models import pretrained

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keys.key(self.config.seed, 0, -1, "what is not trained"))
            if base is None:
                return self._build()
            return pretrained.build(self.config, self.classes, self.kind, base, self.input_shape)

    def _with_halves(self, module: Any, trained: set[str]) -> set[str]:
        """Leave what is frozen in bfloat16, give what is trained the task's type, and return the names of trained parameters that
        share a layer with frozen ones, which are cast for the forward pass."""
        mixed = set()
        for n in trained:
            layer = module.get_submodule(n.rpartition(".")[0])
            if any(not q.requires_grad for q in layer.parameters(recurse=False)):
                mixed.add(n)
        for n, p in module.named_parameters():
            if n in trained:
                p.data = p.data.to(self.dtype)
        return mixed

    def _with_modes(self, pretrained: bool) -> list[Any]:
        """Return the modules that are put into train mode for training steps: all of an own or a pretrained network, of the latter
        under `dropout: false` its adapters' dropout alone; none of a ready one, which has no modes."""
        from rayfed import models
        from rayfed.models.training_mode import NORMS

        if not pretrained and self.config.task.model.name in models.KNOWN:
            return []
        alone = pretrained and self.config.task.model.options.get("dropout") is False
        found = [m for n, m in self._module.named_modules() if not alone or "lora_dropout" in n.split(".")]
        if self.config.local.buffers == "frozen":
            found = [m for m in found if not isinstance(m, NORMS)]
        return found

    def _written_buffers(self, pretrained: bool) -> tuple[str, ...]:
        """Return the names of the buffers that a training forward pass writes: those of normalisation with running statistics, and of an
        own network what a pass over some random rows is seen to write."""
        from rayfed.models import training_mode

        if not self._switched:
            return ()
        own = dict(self._module.named_buffers())
        norms = {n for n, m in self._module.named_modules() if isinstance(m, training_mode.NORMS)}
        found = {n for n in own if n.rpartition(".")[0] in norms}
        if not pretrained:
            key = torch.tensor(keys.key(self.config.seed, 0, -1, "trial rows"), device=self.device)
            rows = keys.uniform(key, (3, *self.input_shape), self.dtype)
            w = torch.tensor([1.0, 1.0, 0.0], dtype=self.dtype, device=self.device)
            with (
                torch.no_grad(),
                contextlib.suppress(Exception),
            ):  # `check_network` reports what is wrong with the network
                answers = []
                for last in (rows[2:], rows[:1] + 1):
                    x = torch.cat([rows[:2], last])
                    buffers = {n: b.clone() for n, b in own.items()}
                    step = training_mode.TrainingStep(key, w)
                    with training_mode.standing_in(self._module, buffers):
                        answers.append(self._forward({}, (x > 0.5).int() if self.kind == "text" else x, step)[:2])
                self._mixes_rows = not torch.equal(*answers)
                found |= {n for n, b in buffers.items() if b.shape != own[n].shape or bool((b != own[n]).any())}
        return () if self.config.local.buffers == "frozen" else tuple(n for n in own if n in found)

    @property
    def initial(self) -> Tree:
        """Return the run's initial parameters: from the seed, or from `init.from`."""
        if self._initial is None:
            self._initial = self.init_params(keys.key(self.config.seed, 0, -1, "init"))
        return self._initial

    def init_params(self, key: int) -> Tree:
        """Return fresh parameters drawn from `key` (PyTorch's own initialisation), or those of `init.from`; a pretrained model's own
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
        whole = {**(self._drawn(key, False) if len(given) < len(self.params_like) else {}), **given}
        return {n: whole[n] for n in self.params_like}  # in the model's order: a file's reader gives them in any

    def fresh_params(self, key: int) -> Tree:
        """Return fresh parameters drawn from `key`, whatever `init.from` or a pretrained model's classifier is (IFCA's other experts)."""
        return self._drawn(key, True)

    def _drawn(self, key: int, everything: bool) -> Tree:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            if hasattr(self._module, "redraw"):  # what is pretrained stays
                found = {n: p for n, p in _named(self._module) if n in self.params_like}
                held = {n: p.data for n, p in found.items()}
                for n, p in found.items():  # drawn on the CPU, so that server and actors hold the same on any device
                    p.data = p.data.to("cpu", copy=n in self.head)  # a head of the checkpoint's is shared
                self._module.redraw(everything)
                fresh = {n: found[n].detach().to(self.device, copy=True) for n in self.params_like}
                fresh |= {n: fresh[n].to(self.dtype) for n in self.buffers}
                for n, p in found.items():
                    p.data = held[n]
                return fresh
            drawn = {n: p.detach().to(self.device, self.dtype) for n, p in _named(self._build())}
            return {n: drawn[n] for n in self.params_like}

    def publish(self, params: Tree, where: Path, rank: int | None = None) -> None:
        """Write a trained tree in the format of its model's own library into `where`, if it has one (PEFT, transformers).

        rank: of a LoRA that has zeros beyond it, default the largest.
        """
        if hasattr(self._module, "publish"):
            self._module.publish(params, where, rank)

    @cached_property
    def frozen(self) -> Tree:
        """Return what is not trained, {name of a parameter: tensor}; never written to, since actors share it."""
        return {n: p for n, p in self._module.named_parameters() if n not in self.params_like}

    def module(self) -> Any:
        """Return a copy of the network, what is frozen in it included; what is trained has the values it was built with."""
        return copy.deepcopy(self._module)

    def layer(self, name: str) -> Any:
        """Return the network's module of that name, to be read."""
        return self._module.get_submodule(name)

    def apply(self, params: Tree, x: Tensor) -> Tensor:
        """Return logits (B, C) of inputs (B, *input_shape). What `params` names of `frozen` stands in its place.

        Texts may be word embeddings (B, L, d) instead of token ids.
        """
        step = self._during["step"]
        if self._augment and step is not None and not self._during["mixed"]:
            x = augment.views(self._augment, x, step.key)
        by = self._during["scale"]
        if by is not None:
            params = {n: p * by.to(p.dtype) if ranks.is_b(n) else p for n, p in params.items()}
        if self._halved:
            params = {n: p.to(torch.bfloat16) if n in self._halved else p for n, p in params.items()}
        if self._places is not None:
            params = {n: p.to(self._places[n]) for n, p in params.items()}
        params = kernels.in_memory_format(params)
        return self._forward(params, x, step).to(self.dtype)

    def _forward(self, params: Tree, x: Tensor, step: TrainingStep | None) -> Tensor:
        """Return what the network answers: in train mode within a step, whose real rows move the buffers, else in eval mode."""
        from rayfed.models import training_mode

        if step is not None and self._mixes_rows and step.w is not None and not bool((step.w > 0).all()):
            real = step.w > 0
            out = self._forward(params, x[real], step.on(real))
            return out.new_zeros(len(x), *out.shape[1:]).index_put((real.nonzero()[:, 0],), out)

        if self._is_training != (step is not None):
            self._is_training = step is not None
            for m in self._switched:
                m.training = self._is_training
        mode = training_mode.TrainingForward(step) if step is not None and self._switched else nullcontext()
        if not self._own_buffers:
            with self._precision(), mode:
                return torch.func.functional_call(self._module, dict(params), (x,))
        # A forward pass may write them, in place too: never into the tree that it was given. They have no gradient.
        buffers = {n: params[n].detach().clone().to(b.dtype) for n, b in self._own_buffers.items()}
        weights = {n: p for n, p in params.items() if n not in buffers}
        with self._precision(), mode, training_mode.standing_in(self._module, buffers):
            out = torch.func.functional_call(self._module, weights, (x,))
        if step is not None:
            note_written({n: b.to(self.dtype) for n, b in buffers.items()})
        return out

    @cached_property
    def word_spread(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each dimension of a text model's word embeddings over its vocabulary, (d,) each."""
        with torch.no_grad():
            mean, deviation = self._module.spread()
        return mean.to(self.device, self.dtype), deviation.to(self.device, self.dtype)

    def _precision(self) -> Any:
        # No cache of casts: one made inside a transform would outlive it.
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.half, cache_enabled=False)

    def scaled(self, factor: Any) -> Any:
        """Let B A count `factor` (0-d tensor) times, None for once: a client's own alpha / r_i."""
        return self._while(scale=factor)

    def rows(self, x: Any) -> Tensor:
        """Return inputs (B, *input_shape) as this task's networks take them, of an array or nested lists."""
        made = torch.as_tensor(x, device=self.device)
        return made.to(self.dtype) if made.is_floating_point() or self.kind != "text" else made

    def batch(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return rows of arrays, or nested lists, by name as a batch of this task, all of weight 1."""
        made = {n: torch.as_tensor(a, device=self.device) for n, a in arrays.items()}
        made = {n: x.to(self.dtype) if x.is_floating_point() else x for n, x in made.items()}
        return {**made, "w": torch.ones(len(made["x"]), dtype=self.dtype, device=self.device)}

    def answer_shape(self, rows: int) -> tuple[tuple[int | None, str], ...]:
        """Return the shape of what a network answers so many rows with, (size, its name) of each axis, None for any size; () where it is
        not known, so that an own network is not tried beforehand."""
        return ((rows, "rows"), (self.classes, "classes")) if self.predicts else ()

    def check_network(self, batch: Any) -> list[str]:
        """Return what is wrong with a user's own network, tried on a batch of some rows: one forward pass in eval mode, one
        forward and backward pass in train mode."""
        x = batch["x"]
        name, shape = f"task.model: {self.config.task.model.name}", tuple(x.shape)
        # The first row in a batch of other rows than before; token ids stay among those of the data.
        changed = torch.cat([x[:1], 1 - x[1:]]) if x.is_floating_point() else x[:1].expand_as(x)
        try:
            with contained(), torch.no_grad():
                out = self._forward(self.initial, x, None)
                again = self._forward(self.initial, x, None)
                other = self._forward(self.initial, changed, None) if len(x) > 1 else again
        except Exception as e:
            return [f"{name} raised on inputs {shape}: {describe(e)}"]
        sizes, words = zip(*(self.answer_shape(len(x)) or ()), strict=True)
        wanted = f"({', '.join('any' if s is None else str(s) for s in sizes)}), ({', '.join(words)})"
        if not isinstance(out, torch.Tensor):
            return [f"{name} returned {type(out).__name__} found, needed: a tensor {wanted}"]
        if out.dim() != len(sizes) or any(s not in (None, n) for s, n in zip(sizes, out.shape, strict=True)):
            return [f"{name} returned {tuple(out.shape)} on inputs {shape}, needed: {wanted}"]
        if not torch.equal(out, again):
            return [f"{name} draws random numbers in evaluation too; needed: only where `self.training` is true"]
        if len(x) > 1 and not torch.allclose(out[:1], other[:1], rtol=1e-4, atol=1e-6):
            return [
                f"{name}: in evaluation a row's answer depends on the other rows of its batch, so that a score would depend on how "
                "rows are cut into batches; needed: running statistics, or normalisation within a row"
            ]
        try:
            with contained():
                slopes, _ = grad(lambda p: mean_loss(self.loss, p, batch, torch.tensor(1, device=self.device)))(
                    self.initial
                )
        except Exception as e:
            return [f"{name} raised in a training step on inputs {shape}: {describe(e)}"]
        bad = [n for n, g in slopes.items() if not bool(torch.isfinite(g).all())]
        if bad:
            return [f"{name}: the gradient of {bad[0]} on the first rows of task.data is not finite"]
        if not any(bool(g.any()) for g in slopes.values()):
            return [f"{name}: no parameter has a gradient (is its output detached, or frozen?)"]
        return []

    def training(self, batch: Any, key: Any) -> Any:
        """Let forward passes be those of a training step: in train mode, with randomness from the step's key (0-d int64),
        batch statistics of the rows of weight 1 and running ones written (`rayfed.training.grad` has them). None as the key: in eval
        mode, as everywhere else.
        """
        from rayfed.models.training_mode import TrainingStep

        return self._while(step=None if key is None else TrainingStep(key, batch.get("w")))

    def crossing(self, crossings: cut.Crossings | None) -> Any:
        """Let training forward passes cross the network's cuts (`task.split`), and note what does; None: cross none."""
        return self._while(crossing=crossings)

    @property
    def crossings(self) -> cut.Crossings | None:
        """Return what crosses the network's cuts in the step at work; None where none does."""
        found: cut.Crossings | None = self._during["crossing"]
        return found

    def keep_averages(self, model: Tree, before: Tree, mean_update: Tree) -> Tree:
        """Return a server's new model with its buffers as the plain average has them, before + mean_update: server optimizers and
        steps other than 1 are for what gradients move."""
        return {**model, **{n: before[n] + mean_update[n] for n in self.buffers}} if self.buffers else model

    @contextmanager
    def _while(self, **what: Any) -> Iterator[None]:
        before = dict(self._during)
        self._during.update(what)
        try:
            yield
        finally:
            self._during.update(before)

    def of_family(self, number: int) -> Task:
        """Return the task of the family of a number; itself where all clients have one model."""
        return [*self.families.values()][number] if self.families else self

    def by_family(self) -> dict[str, Task]:
        """Return name -> the task of each family; {"all": itself} where all clients have one model."""
        return dict(self.families) or {self.family_name: self}

    def of_client(self, client: int) -> Task:
        """Return the task of a client's family; itself where all clients have one model."""
        return self if self.family is None else self.of_family(int(self.family[client]))

    def read_by(self, logits: Callable[[Tree, Tensor], Tensor]) -> Task:
        """Return this task with other logits(model, x) in place of `apply`, for models that are not one network's parameters."""
        made = copy.copy(self)
        made.apply = logits  # type: ignore[method-assign, assignment]
        return made

    # -- the model in two: features and classifier -------------------------------------------------------------------

    @cached_property
    def _classifier(self) -> tuple[str, Any]:
        """Return name and module of the linear layer that makes logits (B, C) of features (B, d); ConfigError without one."""
        calls: list[tuple[str, Any, Any, Any]] = [("", None, torch.empty(()), None)]
        hooks = [
            m.register_forward_hook(lambda m, args, out, n=n: calls.append((n, m, args[0], out)))
            for n, m in self._module.named_modules()
            if isinstance(m, torch.nn.Linear)
        ]
        for m in self._switched:  # one row has no statistics
            m.training = self._is_training = False
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
        """Return d, the size of the penultimate representation. ConfigError if the model does not end in a linear layer."""
        return int(self._classifier[1].in_features)

    def features(self, params: Tree, x: Tensor) -> Tensor:
        """Return the penultimate representation (B, d) of inputs: what the model's last linear layer is given."""
        seen: list[Tensor] = []
        hook = self._classifier[1].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        try:
            self.apply(params, x)
        finally:
            hook.remove()
        return seen[-1].to(self.dtype)

    def last_token(self, params: Tree, x: Tensor) -> Tensor:
        """Return the last layer's state (B, d) at the last token of each text; of a pretrained network (`hf:`) on token ids."""
        seen: list[Tensor] = []
        hook = self._module.encoder.register_forward_hook(lambda m, args, out: seen.append(out[0]))
        try:
            self.apply(params, x)
        finally:
            hook.remove()
        ids = x[:, 0] if self.kind == "instruct" else x
        h = seen[-1][:, -ids.shape[1] :]  # of the text, not of a prompt before it
        last = (torch.arange(ids.shape[1], device=ids.device) * (ids >= 0)).amax(1)
        return h.gather(1, last[:, None, None].expand(-1, 1, h.shape[2]))[:, 0].to(self.dtype)

    def classifier(self, params: Tree) -> Tree:
        """Return the last linear layer's own parameters: {"weight": (C, d)}, and "bias": (C,) if it has one."""
        return {n.rpartition(".")[2]: params[n] for n in self.classifier_names}

    @property
    def classifier_names(self) -> tuple[str, ...]:
        """Return names of the last linear layer's parameters."""
        name = self._classifier[0]
        return tuple(n for n in (f"{name}.weight", f"{name}.bias") if n in self.params_like)

    def classify(self, classifier: Tree, h: Tensor) -> Tensor:
        """Return logits (B, C) of features (B, d): `classify(classifier(params), features(params, x))` is `apply(params, x)`."""
        return F.linear(h, classifier["weight"], classifier.get("bias"))

    # -- inside the model ----------------------------------------------------------------------------------------------

    def watch(self, params: Tree, x: Tensor, outputs: Sequence[str]) -> dict[str, Tensor]:
        """Return what modules of the network answer within one forward pass on inputs (B, *input_shape), {name: (B, ...)}.

        outputs: names of modules (torch's `named_modules`); "" stands for the logits (B, C). ConfigError for one that there is not.

        Example: cut a network and go on from there.

            >>> x = torch.rand(2, *task.input_shape)
            >>> (first, *_) = task.cuts
            >>> seen = task.watch(task.initial, x, [first, ""])
            >>> torch.equal(task.resume(task.initial, first, seen[first]), seen[""])
            True
        """
        seen: dict[str, Tensor] = {}

        def watching(name: str) -> Any:
            return self._named_layer(name).register_forward_hook(lambda m, args, out: seen.update({name: out}))

        hooks = [watching(n) for n in outputs if n]
        try:
            logits = self.apply(params, x)
        finally:
            for hook in hooks:
                hook.remove()
        return {n: seen[n] if n else logits for n in outputs}

    def given(self, params: Tree, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return what modules of the network are given within one forward pass on inputs (B, *input_shape), the first argument of each, by
        name. ConfigError for one that there is not."""
        seen: dict[str, Tensor] = {}

        def watching(name: str) -> Any:
            return self._named_layer(name).register_forward_pre_hook(lambda m, args: seen.update({name: args[0]}))

        hooks = [watching(n) for n in names]
        try:
            self.apply(params, x)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def resume(self, params: Tree, name: str, h: Tensor) -> Tensor:
        """Return the logits (B, C) of a network that goes on from `h`, (B, ...), in the place of what its module `name` answers: entries
        before it count for nothing and have no gradient.

        That is the rest of the network where all later layers depend on this module alone, as behind each of `cuts`. FailsAgain within a
        training step of a network that writes buffers: the part before the cut would write those of no data.
        """
        if self.buffers and self._during["step"] is not None:
            raise FailsAgain("Task.resume within a training step, and task.model writes buffers in training")
        hook = self._named_layer(name).register_forward_hook(lambda m, args, out: h)
        try:
            return self.apply(params, torch.zeros_like(self.blank(len(h))))
        finally:
            hook.remove()

    def blank(self, rows: int) -> Tensor:
        """Return inputs (B, *input_shape) to try a network on: ones."""
        kind = torch.int32 if self.kind in ("text", "instruct") else self.dtype
        return torch.ones(rows, *self.input_shape, dtype=kind, device=self.device)

    def _named_layer(self, name: str) -> Any:
        known = dict(self._module.named_modules())
        if name not in known or not name:
            raise ConfigError(
                f"task.model: no layer {name!r}{nearest(name, known)}; there are: {', '.join(n for n in known if n)}"
            )
        return known[name]

    @cached_property
    def cuts(self) -> dict[str, tuple[str, ...]]:
        """Return the modules behind which the network can be cut, from shallow to deep, each with the trained entries behind it: those from
        whose answers alone the logits follow, which is tried, with parameters before and behind them; of several between the same
        parameters the last one."""
        called: list[str] = []
        modules = {n: m for n, m in self._module.named_modules() if n}
        hooks = [m.register_forward_hook(lambda m, args, out, n=n: called.append(n)) for n, m in modules.items()]
        key = torch.tensor(keys.key(self.config.seed, 0, -1, "cuts"), device=self.device)
        x = keys.uniform(key, (2, *self.input_shape), self.dtype)
        x = self.blank(2) if self.kind in ("text", "instruct") else x
        with torch.no_grad():
            try:
                logits = self.apply(self.initial, x)
            finally:
                for hook in hooks:
                    hook.remove()
            once = [n for n in called if called.count(n) == 1]
            seen = self.watch(self.initial, x, once)
            found: dict[int, tuple[str, tuple[str, ...]]] = {}
            for n in once:
                before = {m for m in called[: called.index(n) + 1] for _ in modules[m].parameters(recurse=False)}
                behind = {m for m in called for _ in modules[m].parameters(recurse=False)} - before
                if before and behind and isinstance(seen[n], torch.Tensor) and self._follows(n, seen[n], logits):
                    found[len(before)] = n, tuple(p for p in self.params_like if p.rpartition(".")[0] in behind)
        return dict(found.values())

    def _follows(self, name: str, h: Tensor, logits: Tensor) -> bool:
        """Return whether the logits follow from what a module answers."""
        try:
            return torch.equal(self.resume(self.initial, name, h), logits)
        except Exception:
            return False

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return cross-entropy of each example, (B,); with a training step's key, the forward pass is that of training, images are
        augmented (`local.augment`) and targets smoothed (`local.label_smoothing`)."""
        if self._mixup is not None and key is not None:
            return self._mixed_loss(params, batch, key)
        with self.training(batch, key):
            logits = self.apply(params, batch["x"])
        return self.cross_entropy(logits, batch["y"], key)

    def _mixed_loss(self, params: Tree, batch: Any, key: Any) -> Tensor:
        """Return the loss (B,) of a training step under mixup: of each row's image mixed with another's, by both labels."""
        x = augment.views(self._augment, batch["x"], key)
        partner, share = self._mixup.pairs(key, batch["w"])
        with self.training(batch, key), self._while(mixed=True):
            logits = self.apply(params, share * x + (1 - share) * x[partner])
        own, other = (self.cross_entropy(logits, y, key) for y in (batch["y"], batch["y"][partner]))
        return share * own + (1 - share) * other

    def cross_entropy(self, logits: Tensor, y: Tensor, key: Any = None) -> Tensor:
        """Return cross-entropy (B,) of logits (B, C) against labels (B,); with a training step's key, targets are smoothed."""
        logp = torch.log_softmax(logits, -1)
        # F.cross_entropy's bits; vmap takes that one apart in Python
        loss = -logp.gather(-1, y[:, None])[:, 0]
        e = self.config.local.label_smoothing if key is not None else 0
        return (1 - e) * loss - e * logp.mean(-1) if e else loss

    def taught(self, answer: Tensor, teacher: Tensor, low: float, high: float) -> Tensor:
        """Return the loss (B,) of a network's answers by a teacher's, both as `apply` gives them: cross-entropy with the teacher's class
        where it gives it a probability of at least `high`, else 0; low: where a kind has something to learn from less sure answers."""
        p, label = torch.softmax(teacher.detach(), -1).max(-1)
        nll = -torch.log_softmax(answer, -1).gather(-1, label[:, None])[:, 0]
        return torch.where(p >= high, nll, 0.0)

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Return class probabilities (B, C)."""
        return torch.softmax(self.apply(params, batch["x"]), -1)

    def metrics(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return loss and accuracy of each example, (B,)."""
        return self.judge(torch.log_softmax(self.apply(params, batch["x"]), -1), batch["y"])

    def score(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return what metrics of sets read of each row: `metrics`, (B,), and `prediction`, (B, C) probabilities."""
        logp = torch.log_softmax(self.apply(params, batch["x"]), -1)
        return {**self.judge(logp, batch["y"]), "prediction": logp.exp()}

    def summary(self, rows: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, float]:
        """Return the kind's own measures of a set of rows, those that say `of="set"`; none by default.

        rows: what `score` gave of each, (n, ...) float64 arrays; batch: their columns, (n, ...) arrays. NaN where one is undefined.
        """
        return {}

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return loss and accuracy of each example, (B,), of a weighted mean of `predict`s."""
        return self.judge(torch.log(p.clamp(min=1e-12)), batch["y"])

    def judge(self, log_probs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return loss and accuracy of log probabilities (B, C) against labels (B,)."""
        return {
            "loss": -log_probs.gather(-1, y[..., None])[..., 0],
            "accuracy": (log_probs.argmax(-1) == y).to(log_probs.dtype),
        }


class TaskKind(Task):
    """Base of the kinds of task beside classification, and of your own ones (docs/tasks.md).

    A subclass says in `measures` what it measures, and defines

        loss(params, batch, key)   of each example, (B,): what is trained; the forward pass within `self.training(batch, key)`
        predict(params, batch)     the model's answers, (B, ...)
        judge_mean(p, batch)       of answers, of one model or a mean of several models', the measures of each row, (B,)
        summary(rows, batch)       the measures of a set of rows, where it has such

    and, where they are not the defaults, `reads`, `columns`, `offers`, `predicts`, `usual` and `Settings`.
    """

    reads: ClassVar[tuple[str, ...]] = ("classes", "labels", "numbers")
    offers: ClassVar[frozenset[str]] = frozenset({"features"})
    predicts: ClassVar[str] = ""
    per_class: ClassVar[bool] = False
    measures: tuple[Measure, ...] = ()

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the loss of each example, (B,)."""
        raise TypeError(f"{type(self).__name__} defines no loss(params, batch, key)")

    def taught(self, answer: Tensor, teacher: Tensor, low: float, high: float) -> Tensor:
        """Return the loss (B,) of a network's answers by a teacher's, of a kind that has one."""
        raise TypeError(f"{type(self).__name__} defines no taught(answer, teacher, low, high)")

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Return the model's answers, (B, ...); by default `apply`."""
        return self.apply(params, batch["x"])

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return the measures of each row, (B,), of answers `p`."""
        raise TypeError(f"{type(self).__name__} defines no judge_mean(p, batch)")

    def metrics(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return the measures of each row, (B,)."""
        found = self.judge_mean(self.predict(params, batch), batch)
        return {n: found[n] for n in self.row_measures}

    def score(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return what metrics of sets read of each row: what `judge_mean` gives, and `prediction`."""
        p = self.predict(params, batch)
        return {**self.judge_mean(p, batch), "prediction": p}


def _named(module: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield a network's parameters and buffers by name."""
    yield from module.named_parameters()
    yield from module.named_buffers()
