"""FedYogi: Yogi at the server, whose second moment moves by bounded steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayfed.methods._bases.adaptive import Adaptive, DecaySettings

if TYPE_CHECKING:
    from torch import Tensor


class FedYogi(Adaptive):
    """Reddi et al. 2021, "Adaptive Federated Optimization" (2003.00295), algorithm 2, FedYogi.

    Client i: as FedAvg. Server: m <- beta1 m + (1 - beta1) Delta; v <- v - (1 - beta2) Delta^2 sign(v - Delta^2);
    x <- x + eta_g m / (sqrt(v) + tau), v^0 = tau^2.
    Down: the model (P floats). Up: the update (P), n_i. Kept at clients: nothing. At the server: x, m, v (3 P).
    """

    Settings = DecaySettings

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        return v - (1 - self.settings.beta2) * squared * (v - squared).sign()
