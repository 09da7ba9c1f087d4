"""What a run has trained, ready to call: the global model, a cluster's expert, the model that a client is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed import snapshot, tree
from rayfed.errors import ConfigError
from rayfed.lazy import torch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor, nn

    from rayfed.config import Config, Named


class Model(dict[str, Any]):
    """Parameters by name, and the network that has them: `model(x)` gives logits (B, classes) of inputs (B, *input_shape)."""

    def __init__(self, parameters: Mapping[str, Tensor], network: Named, classes: int, input_shape: Sequence[int]):
        super().__init__(parameters)
        self.network, self.classes, self.input_shape = network, classes, tuple(input_shape)

    def __call__(self, x: ArrayLike) -> Tensor:
        """Logits (B, classes), without gradients. ValueError if the inputs are not (B, *input_shape)."""
        like = next(iter(self.values()))
        inputs = torch.as_tensor(x).to(like.device, like.dtype)
        if tuple(inputs.shape[1:]) != self.input_shape:
            wanted = ", ".join(map(str, ("B", *self.input_shape)))
            raise ValueError(f"inputs of shape {tuple(inputs.shape)} found, needed: ({wanted})")
        with torch.no_grad():
            return torch.func.functional_call(self._bare, dict(self), (inputs,))

    def module(self) -> nn.Module:
        """A torch.nn.Module with a copy of the parameters, to train on, export or save."""
        made = self._build()
        made.load_state_dict({n: p.clone() for n, p in self.items()}, strict=False)  # buffers are the network's own
        return made

    def _build(self) -> nn.Module:
        from rayfed import models

        like = next(iter(self.values()))
        with torch.random.fork_rng(devices=[]):
            made = models.build(self.network, self.classes, self.input_shape)
        return made.to(device=like.device, dtype=like.dtype).eval()

    @cached_property
    def _bare(self) -> nn.Module:
        return self._build()


def saved(folder: Path, config: Config, name: str) -> Model:
    """A model of the run's `model/`: "model", or "expert-0", ... ConfigError naming what is there."""
    there = sorted({f.name.split(".")[0] for f in (folder / "model").glob("*.safetensors")})
    if name not in there:
        raise ConfigError(
            f"{folder}: no model {name!r}; there are: {', '.join(there) or 'none (the run has not ended)'}"
        )
    about = snapshot.load_meta(folder / "model", name)
    parameters = tree.from_numpy(snapshot.load_tree(folder / "model", name))
    return Model(parameters, config.task.model, int(about["classes"]), about["input_shape"])


class Served:
    """What each client is served after the newest snapshot's round, built at the client as in the run's evaluation.

    The clients' data is split again, since a method may look at it (the least loss, fine-tuning, which draws its batches anew).
    """

    def __init__(self, folder: Path, config: Config):
        from rayfed import partition
        from rayfed.engine import start_from
        from rayfed.fed import Fed
        from rayfed.pool import LocalPool
        from rayfed.worker import Resident

        found = next(((r, p) for r, p in snapshot.listed(folder / "snapshots") if not snapshot.damage(p, r)), None)
        if found is None:
            raise ConfigError(f"{folder}: no snapshot, so no client has a model yet")
        self.round, where = found
        if config.resources.executor == "auto":
            config = config.with_resources(executor="loop")
        self.config, self.federation, pool, start = config, partition.build(config), LocalPool(), start_from(config)
        here = Resident(config, self.federation, start, "cpu")
        pool.setup(folder.name, config, self.federation, start)
        self.fed = Fed(config, self.federation, here.method, here.task, pool, folder.name)
        self.fed.store.load(where, folder / "segments")
        self.method, self.state = here.method, tree.from_numpy(snapshot.load_tree(where, "server"))

    def model(self, client: int) -> Model:
        """Of one client, also of a held-out one. ConfigError if there is no such client."""
        n = self.federation.clients
        if not 0 <= client < n:
            raise ConfigError(f"client: {client} found, allowed: 0 to {n - 1}")
        mine = self.method.mine(self.state, client)
        self.fed.begin(self.round)
        got = self.fed.ask(
            "@served", [client], shared=self.method.serve(self.state), mine={client: mine} if mine else None
        )
        parameters = tree.map(torch.clone, got.gather("model")[client])
        return Model(parameters, self.config.task.model, self.federation.classes, self.federation.input_shape)
