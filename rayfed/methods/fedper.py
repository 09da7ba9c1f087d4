"""FedPer: the last layers stay at the client, the layers before them are averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import MethodSettings, params_of
from rayfed.methods._bases.private_layers import PrivateLayers, split_wire

if TYPE_CHECKING:
    from rayfed import Wire
    from rayfed.wire import Params


class FedPer(PrivateLayers):
    """Arivazhagan et al. 2019, "Federated Learning with Personalization Layers" (1912.00818).

    Base layers W_B, personalisation layers W_P,i. Client i trains both together from (W_B, W_P,i), keeps W_P,i and sends the
    update of W_B; server: W_B <- sum_i (n_i / n) W_B,i. `private` names the paper's K_P last layers: `head` is one of them, with
    more words (pieces between the dots of parameters' names) it is more. All layers but these private: LG-FedAvg.
    A client that never took part, a held-out one too, has the first W_P; there is no global model, so `global` scores the mean
    of the served models' predictions.
    Down: W_B (P - H floats). Up: its update (P - H), n_i. Kept at client i: W_P,i (H), how often it trained. At the server:
    W_B, and W_P as it was drawn.
    """

    class Settings(MethodSettings):
        private: tuple[str, ...] = Field(
            ("head",), min_length=1, description="Layers that stay: `head`, or pieces between the dots of names."
        )

    wire: ClassVar[Wire] = split_wire(params_of("head"))
    universal: ClassVar[str | None] = None
    named: ClassVar[str | None] = "private"

    @property
    def private(self) -> Params:
        return params_of(*self.settings.private)
