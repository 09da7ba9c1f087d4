"""FedBN: normalisation layers stay at the client."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed import params_of
from rayfed.methods._bases.private_layers import PrivateLayers, split_wire

if TYPE_CHECKING:
    from rayfed import Wire
    from rayfed.wire import Params


class FedBN(PrivateLayers):
    """Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization" (2102.07623).

    The entries of layers with running statistics (weight, bias, mean, variance, counter) are the client's own, FedAvg on the rest:
    client i trains x^r with its own b_i, keeps the trained b_i and sends the update u_i of the rest; server: x^{r+1} = x^r +
    sum_i (n_i / n) u_i. Without such layers: FedAvg.
    Down: the model without b (P - B floats). Up: u_i (P - B), n_i. Kept at client i: b_i (B), how often it trained.
    At the server: x, and b of the initial model, which a client has that was never asked and by which `global` is scored.
    """

    wire: ClassVar[Wire] = split_wire(params_of("norm"))

    @property
    def private(self) -> Params:
        return params_of("norm")
