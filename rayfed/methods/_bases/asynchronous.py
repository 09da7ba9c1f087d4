"""What methods share that do not wait for all clients: a clock in the server state, and an ask for each version that replies come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from rayfed import PARAMS, SCALAR, Part, Wire, clock, total, transform, tree
from rayfed.lazy import torch
from rayfed.methods._bases.one_model import OneModel

if TYPE_CHECKING:
    import numpy as np

    from rayfed import Fed, Task, Tree
    from rayfed.clock import Clock
    from rayfed.config.schema import Config


class Asynchronous(OneModel):
    """Base: as many clients are at work as `federation.per_round` says, each on the version that it was sent; a round is one step of the
    server. An update is the difference to that version, and is added to the present model. Time is that of `devices`; without a profile
    all visits take a second. The local rate is that of the round in which a reply comes in."""

    no_buffers = "an update is added to a newer model than the one it was made from, and running statistics cannot be"
    no_rule = "updates are added one by one as they come in, each with a weight of its own"
    logs: ClassVar = {
        "staleness/mean": ("steps of the server since a client was sent its model, mean over replies", "steps")
    }
    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS),
            "weight": Part(SCALAR, note="the server's weight for the client; nothing in a deployment"),
        },
        up={"delta": Part(PARAMS, update=True)},
        server={"model": Part(PARAMS), **clock.PARTS},
    )

    def check(self, config: Config) -> list[str]:
        late, found = (
            config.failures.stragglers,
            transform.own_weights(config, "weights by staleness and by who they come from"),
        )
        for name, value in late.given():
            found.append(
                f"failures.stragglers.{name}: {value} found, but nothing reads it with method.name: {config.method.name}, which waits "
                "for nobody; allowed: leave it out"
            )
        asked, buffer = config.per_round(), getattr(self.settings, "buffer", None)
        if buffer is not None and buffer > asked:
            found.append(
                f"method.buffer: {buffer} found, allowed: at most {asked}, the clients at work (federation.per_round)"
            )
        return found

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part == "weight" else super().cost(part, sent)

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), **clock.start(task.population)}

    def buffer_size(self, fed: Fed) -> int:
        """Return how many replies make a step: `buffer`, by default half of the clients at work."""
        return int(self.settings.buffer or max(1, fed.config.per_round() // 2))

    def collect(
        self,
        fed: Fed,
        at: Clock,
        came: Mapping[int, int],
        weight: Callable[[int, int], float],
        parts: tuple[str, ...] = ("delta",),
        extra: Mapping[int, Tree] = MappingProxyType({}),
    ) -> tuple[dict[str, Tree], list[int]]:
        """Have replies computed: (part -> its weighted sum over them, {} of nobody's; whose they are).

        weight(client, staleness); extra: what else each client is sent for itself alone.
        """
        summed: dict[str, Tree] = {}
        ids: list[int] = []
        for model, staleness, clients in at.versions(came):
            weights = {c: torch.tensor(float(weight(c, staleness)), dtype=torch.float64) for c in clients}
            got = fed.ask(
                self.train, clients, shared={"model": model}, mine={c: {"weight": w, **extra.get(c, {})} for c, w in weights.items()},
                fold=tuple(total(part, weight="weight") for part in parts),
            )  # fmt: skip
            if got.ids:
                fed.log("staleness/mean", staleness, len(got))
                summed = {p: tree.add(summed[p], got.folded[p]) if summed else got.folded[p] for p in parts}
                ids += got.ids
        return summed, ids


def base_weights(fed: Fed, kind: str) -> np.ndarray:
    """Return what clients count for, (N,) float64: their examples, or one."""
    sizes = fed.federation.train.sizes()[: fed.population].astype("float64")
    return sizes if kind == "examples" else sizes * 0 + 1
