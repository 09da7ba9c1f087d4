"""What a run has trained, ready to call: the global model, a cluster's expert, the model that a client is served."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed import models, partition, tree
from rayfed import task as tasks
from rayfed.adapters import ranks
from rayfed.data import modalities
from rayfed.engine.best import FOLDER, kept
from rayfed.engine.dispatch import Dispatch
from rayfed.engine.evaluation import Evaluation
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from rayfed.lazy import torch
from rayfed.method import Method
from rayfed.models import families
from rayfed.models.start import start_from
from rayfed.partition.targets import Targets
from rayfed.storage import atomic, snapshots, tree_files
from rayfed.storage.run_folder import model_damage

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor, nn

    from rayfed.config.schema import Config, Named
    from rayfed.data.modalities import Modality
    from rayfed.task import Task
    from rayfed.tree import Tree


class Model(dict[str, Any]):
    """Parameters by name, and the network that has them: `model(x)` gives logits (B, classes) of inputs (B, *input_shape)."""

    def __init__(
        self,
        parameters: Mapping[str, Any],
        network: Named,
        classes: int,
        input_shape: Sequence[int],
        logits: Callable[[Tree, Tensor], Tensor] | None = None,
        build: Callable[[], nn.Module] | None = None,
        targets: Targets | None = None,
        modalities: Sequence[Modality] = (),
    ):
        """logits(parameters, x): where the network alone does not give them; build(): the network, where its name does not say
        all of it (a pretrained one with its frozen base); targets: what it answers with where that is no class; modalities: what an example
        holds, where it is of several."""
        super().__init__(parameters)
        self.network, self.classes, self.input_shape, self.logits = network, classes, tuple(input_shape), logits
        self.build, self.targets, self.modalities = build, targets, tuple(modalities)

    def __call__(self, x: ArrayLike) -> Tensor:
        """Return logits (B, classes), or numbers in their own unit, without gradients. ValueError if the inputs are not
        (B, *input_shape)."""
        like = tree.values(dict(self))[0]
        inputs = torch.as_tensor(x).to(like.device)
        inputs = inputs.to(like.dtype) if self.logits is None or inputs.is_floating_point() else inputs
        if tuple(inputs.shape[1:]) != self.input_shape:
            wanted = ", ".join(map(str, ("B", *self.input_shape)))
            raise ValueError(f"inputs of shape {tuple(inputs.shape)} found, needed: ({wanted})")
        with torch.no_grad():
            if self.logits is not None:
                return self.logits(dict(self), inputs)
            answer = torch.func.functional_call(self._bare, dict(self), (inputs,))
            if self.targets is None or not self.targets.mean:
                return answer
            mean, deviation = (torch.tensor(v, dtype=answer.dtype) for v in (self.targets.mean, self.targets.deviation))
            return answer * deviation + mean

    def module(self) -> nn.Module:
        """Build a torch.nn.Module with a copy of the parameters, to train on, export or save. TypeError where the method's model is
        more than one network."""
        if self.logits is not None and self.build is None:
            raise TypeError(
                f"what the method serves is no single module but a tree of {', '.join(self)}; call it instead"
            )
        module = self._build()
        module.load_state_dict({n: p.clone() for n, p in self.items()}, strict=False)  # buffers are the network's own
        return module

    def _build(self) -> nn.Module:
        if self.build is not None:
            return self.build()
        like = next(iter(self.values()))
        with torch.random.fork_rng(devices=[]):
            module = models.build(self.network, self.classes, self.input_shape, self.modalities)
        return module.to(device=like.device, dtype=like.dtype).eval()

    @cached_property
    def _bare(self) -> nn.Module:
        return self._build()


def list_models(folder: Path, where: str = "model") -> list[str]:
    """List the models in a folder of a run, which may also hold files of a pretrained model's adapter and classifier.

    where: `model`, the final ones, or what `best_models` gives.
    """
    found = {f.name.split(".")[0] for f in (folder / where).glob("*.safetensors")}
    return sorted(n for n in found if n == "model" or n.startswith("expert-"))


def best_models(folder: Path) -> str:
    """Return the folder within a run's that holds the best round's models, best/round-000007. ConfigError if there is none."""
    found = kept(folder)
    if not found:
        raise ConfigError(f"{folder}: no models of a best round; storage.best: accuracy/global keeps them")
    return f"{FOLDER}/{list(found.values())[-1].name}"


def load_model(folder: Path, config: Config, name: str, where: str = "model") -> Model:
    """Load a model of a run: "model", or "expert-0", ... ConfigError naming those that exist. where: as in `list_models`."""
    known = list_models(folder, where)
    if name not in known:
        raise ConfigError(
            f"{folder}: no model {name!r}; there are: {', '.join(known) or 'none (the run has not ended)'}"
        )
    if where == "model" and (damage := model_damage(folder, f"{name}.")):
        raise ConfigError(f"{folder}: {damage}; rayfed resume {folder} writes it again")
    meta = tree_files.load_meta(folder / where, name)
    parameters = tree.from_numpy(tree_files.load_tree(folder / where, name))
    pretrained: dict[str, Any] = {}
    if config.task.model.name.startswith("hf:"):
        task = lru_cache(lambda: _build_task(config))  # the base is read once it is needed
        pretrained = {"logits": lambda p, x: task().apply(p, x), "build": lambda: task().module()}
    targets = Targets.of(meta.get("targets"))
    return Model(
        parameters,
        next(iter(families.models(config.task.model).values())),  # of families the first one's (`Method.first_family`)
        int(meta["classes"]),
        meta["input_shape"],
        **pretrained,
        targets=targets,
        modalities=modalities.of(meta.get("modalities", ())),
    )


def _build_task(config: Config) -> Task:
    federation = partition.build(config)
    return tasks.of(federation.task)(config, federation, "cpu", start_from(config))


TRIES = 5  # to read a snapshot of a run that may go on


class Served:
    """What each client is served after the newest snapshot's round, built at the client as in the run's evaluation.

    The clients' data is split again, since a method may need it (the least loss, fine-tuning, which draws its batches anew).
    """

    def __init__(self, folder: Path, config: Config):
        self._newest(folder)
        if config.resources.executor == "auto":
            config = config.with_resources(executor="loop")
        self.config, self.federation, pool, start = config, partition.build(config), LocalPool(), start_from(config)
        resident = Resident(config, self.federation, start, "cpu")
        self.method, self.task = resident.method, resident.task
        pool.setup(folder.name, config, self.federation, start)
        self.dispatch = Dispatch(config, self.federation, self.method, self.task, pool, folder.name)
        for left in reversed(range(TRIES)):  # a run that goes on may delete a snapshot while it is read
            try:
                self.round, where = self._newest(folder)
                self.dispatch.load(where, folder / "segments")
                self.state = tree.from_numpy(tree_files.load_tree(where, "server"))
                break
            except FileNotFoundError:
                if not left:
                    raise

    def _newest(self, folder: Path) -> tuple[int, Path]:
        """Return round and folder of the newest whole snapshot. ConfigError if there is none."""
        for r, path in snapshots.list_snapshots(folder / "snapshots"):
            if not snapshots.find_damage(path, r):
                return r, path
        raise ConfigError(f"{folder}: no snapshot, so no client has a model yet")

    def _serve(self, client: int) -> tuple[Tree, int]:
        """Build what a client is served: (its parameters, its LoRA rank). ConfigError if there is no such client."""
        n = self.federation.clients
        if not 0 <= client < n:
            raise ConfigError(f"client: {client} found, allowed: 0 to {n - 1}")
        mine = self.method.mine(self.state, client)
        self.dispatch.begin(self.round, score_local=False)
        shared = self.method.serve(self.state)
        replies = self.dispatch.ask(Evaluation.SERVED, [client], shared=shared, mine={client: mine} if mine else {})
        return tree.map(torch.clone, replies.gather("model")[client]), int(replies.gather("rank")[client])

    def save_adapter(self, client: int, where: Path) -> None:
        """Write a client's adapter into a folder; see `rayfed.api.Run.save_adapter`."""
        if self.config.adapter.kind in ("none", "full", "bias"):
            raise ConfigError(f"adapter.kind: {self.config.adapter.kind} found, so a client has no adapter to save")
        if type(self.method).logits is not Method.logits:
            raise ConfigError(
                f"method.name: {self.config.method.name} serves more than one adapter; see model(client=)"
            )
        if where.exists() and (not where.is_dir() or any(where.iterdir())):
            raise ConfigError(f"{where}: exists already and is no empty folder")
        parameters, rank = self._serve(client)
        by = ranks.factor(self.config, rank)
        if by is not None:  # the served tree is in units of the largest rank's scale
            parameters = ranks.cut(parameters, rank, 1 / by)
        hidden = where.with_name(f".{where.name}.{os.getpid()}")
        hidden.mkdir(parents=True)
        try:
            self.task.publish(parameters, hidden, rank or None)
            if where.exists():
                where.rmdir()
            hidden.rename(where)
        finally:
            atomic.remove(hidden)

    def model(self, client: int) -> Model:
        """Return the model of one client, also of a held-out one. ConfigError if there is no such client."""
        parameters, _ = self._serve(client)
        task = self.task.of_client(client)
        network = task.config.task.model
        own, hf = type(self.method).logits is not Method.logits, network.name.startswith("hf:")
        return Model(
            parameters,
            network,
            task.classes,
            self.federation.input_shape,
            partial(self.method.logits, task) if own or hf else None,
            task.module if hf and not own else None,
            self.federation.targets,
            self.federation.modalities,
        )
