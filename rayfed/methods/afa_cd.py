"""AFA-CD: anarchic federated averaging across devices; workers come when they like, and the server remembers none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed import Wire, tree
from rayfed.methods._bases.anarchic import DOWN, SERVER, Anarchic, AnarchicSettings
from rayfed.methods._bases.asynchronous import Asynchronous

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree


class AFACD(Anarchic):
    """Yang et al. 2022, "Anarchic Federated Learning" (ICML 2022, 2108.09875), cross-device.

    Worker i: from x_mu, K_i steps of SGD; sends G_i = (x_mu - y) / (lr K_i). Server, after any `buffer` of them, stale or not:
    x <- x - server_lr mean G_i. Who comes often counts for more. `server_lr` is along a gradient: lr K_i is averaging.
    How long a worker stays away is how long its visit takes (`devices`); one in the buffer does not come again before the step.
    Down: the model (P floats). Up: G_i (P), and K_i. Kept at clients: nothing. At the server: x, and each version in use.
    """

    Settings = AnarchicSettings
    wire: ClassVar[Wire] = Asynchronous.wire._replace(
        down={**Asynchronous.wire.down, **DOWN}, server={**Asynchronous.wire.server, **SERVER}
    )

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        at, came, told, taken = self.arrivals(state, fed)
        summed, ids = self.collect(fed, at, came, lambda client, staleness: 1.0, extra=told)
        model = tree.add(state["model"], summed["delta"], self.settings.server_lr / len(ids)) if ids else None
        return {**at.after(model), "steps": taken}
