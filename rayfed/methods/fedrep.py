"""FedRep: first the private head on the representation as received, then the representation under that head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import MethodSettings, params_of
from rayfed.methods._bases.private_layers import PrivateLayers, split_wire
from rayfed.training import work
from rayfed.visits import epochs

if TYPE_CHECKING:
    from rayfed import Task, Wire
    from rayfed.visits import Over
    from rayfed.wire import Params


class FedRep(PrivateLayers):
    """Collins et al. 2021, "Exploiting Shared Representations for Personalized Federated Learning" (ICML 2021, 2102.07078),
    algorithm 1.

    Client i, given the representation phi: `head_epochs` epochs of SGD on its own head h_i with phi fixed; then the config's
    local work on phi with h_i fixed; keeps h_i, sends the update of phi. Server: phi <- the mean of phi_i, equal weights
    [paper]; the authors' code weighs by n_i (`weight: examples`). The optimizer's state is fresh in each of the two parts, and
    running statistics follow the data in both.
    A client that never took part, a held-out one too, has the first h; there is no global model, so `global` scores the mean
    of the served models' predictions.
    Down: phi (P - H floats). Up: its update (P - H), n_i with `weight: examples`. Kept at client i: h_i (H), how often it
    trained. At the server: phi, and h as it was drawn.
    """

    class Settings(MethodSettings):
        private: tuple[str, ...] = Field(
            ("head",), min_length=1, description="Layers that stay: `head`, or pieces between the dots of names."
        )
        head_epochs: int = Field(10, ge=0, description="Epochs of the private layers before the shared ones train.")
        weight: Literal["one", "examples"] = Field(
            "one", description="Weights of the mean: equal (paper), or by examples (code)."
        )

    wire: ClassVar[Wire] = split_wire(params_of("head"))
    universal: ClassVar[str | None] = None
    named: ClassVar[str | None] = "private"

    @property
    def private(self) -> Params:
        return params_of(*self.settings.private)

    @property
    def weight(self) -> str:
        return str(self.settings.weight)

    def phases(self, task: Task) -> Sequence[tuple[Over, Callable[[str], bool]]]:
        own = self.private.select(task.params_like, task)
        first = [(epochs(self.settings.head_epochs), lambda n: n in own)] if self.settings.head_epochs else []
        return [*first, (work(self.local), lambda n: n not in own)]
