"""FedAdagrad: Adagrad at the server, over the mean update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed.methods._bases.adaptive import Adaptive, AdaptiveSettings

if TYPE_CHECKING:
    from torch import Tensor


class FedAdagrad(Adaptive):
    """Reddi et al. 2021, "Adaptive Federated Optimization" (2003.00295), algorithm 2, FedAdagrad.

    Client i: as FedAvg. Server: m <- beta1 m + (1 - beta1) Delta (beta1 = 0 by default); v <- v + Delta^2;
    x <- x + eta_g m / (sqrt(v) + tau), v^0 = tau^2.
    Down: the model (P floats). Up: the update (P), n_i. Kept at clients: nothing. At the server: x, m, v (3 P).
    """

    class Settings(AdaptiveSettings):
        beta1: float = Field(0.0, ge=0, lt=1, description="Decay of the first moment; 0 in the paper.")

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        return v + squared
