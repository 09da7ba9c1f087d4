"""LG-FedAvg: the encoder stays at the client, the last layers are averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import MethodSettings, params_but
from rayfed.methods._bases.private_layers import PrivateLayers, split_wire

if TYPE_CHECKING:
    from rayfed import Wire
    from rayfed.wire import Params


class LGFedAvg(PrivateLayers):
    """Liang et al. 2020, "Think Locally, Act Globally: Federated Learning with Local and Global Representations" (2001.01523), with
    the cross-entropy of the task as the local loss (no auxiliary losses of the representation).

    Client i has its own encoder l_i and the global g on top of it: it trains both together from (l_i, g), keeps l_i and sends
    the update of g; server: g <- sum_i (n_i / n) g_i. The opposite of FedPer. `shared` names the layers of g; all layers shared is
    FedAvg to the bit.
    A client that never took part, a held-out one too, has the first l and is served (l, g), where the paper asks all clients' models
    and averages their answers; that mean is what `global` scores, since there is no global model.
    Down: g (H floats). Up: its update (H), n_i. Kept at client i: l_i (P - H), how often it trained. At the server: g, and l
    as it was drawn.
    """

    class Settings(MethodSettings):
        shared: tuple[str, ...] = Field(
            ("head",),
            min_length=1,
            description="Layers that are averaged: `head`, or pieces between the dots of names.",
        )

    wire: ClassVar[Wire] = split_wire(params_but("head"))
    universal: ClassVar[str | None] = None
    named: ClassVar[str | None] = "shared"

    @property
    def private(self) -> Params:
        return params_but(*self.settings.shared)
