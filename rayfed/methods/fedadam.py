"""FedAdam: Adam at the server, over the mean update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayfed.methods._bases.adaptive import Adaptive, DecaySettings

if TYPE_CHECKING:
    from torch import Tensor


class FedAdam(Adaptive):
    """Reddi et al. 2021, "Adaptive Federated Optimization" (2003.00295), algorithm 2, FedAdam.

    Client i: as FedAvg. Server: m <- beta1 m + (1 - beta1) Delta; v <- beta2 v + (1 - beta2) Delta^2;
    x <- x + eta_g m / (sqrt(v) + tau), v^0 = tau^2, no bias correction (so it is not torch.optim.Adam).
    Down: the model (P floats). Up: the update (P), n_i. Kept at clients: nothing. At the server: x, m, v (3 P).
    """

    Settings = DecaySettings

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        return self.settings.beta2 * v + (1 - self.settings.beta2) * squared
