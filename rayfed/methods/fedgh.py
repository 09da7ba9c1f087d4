"""FedGH: extractors stay with their clients; the server trains the one header on the clients' mean features of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import CLASSES, MethodSettings, Part, Visit, Wire, visit
from rayfed.lazy import F
from rayfed.methods._bases import prototypes
from rayfed.methods._bases.server_header import ServerHeader
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Replies, Task, Tree


class FedGH(ServerHeader):
    """Yi et al. 2023, "FedGH: Heterogeneous Federated Learning with Generalized Global Header" (ACM Multimedia 2023, 2303.13137).

    Client i: local SGD on cross-entropy from (f_i, h), f_i its own extractor and h the header as received; keeps f_i and sends for
    each class c that it has r_i,c, the mean of f_i over its training rows of c, in evaluation mode after training. Server: SGD on h
    over all pairs (r_i,c, c), client after client, in batches of `server_batch` (the code's: 1), `server_epochs` passes; every pair
    counts the same, however many rows it stands for. The next round overwrites the clients' headers with h.
    Exact means over rows, where the code takes means of batches' means; an optimizer that owns h, where the code's steps the client's.
    There is no global model: `global` scores the mean of the served models' predictions. A client that never took part, a
    held-out one too, has the run's first f.
    Down: h (C d + C floats). Up: of each class the client has r_i,c (d) and its label; with one row of a class that row's features.
    Kept at client i: f_i (P - C d - C), how often it trained. At the server: h.
    """

    class Settings(MethodSettings):
        server_lr: float = Field(0.01, ge=0, description="SGD's rate for the header; 0: it stays as it was drawn.")
        server_epochs: int = Field(1, ge=1, description="Passes of the header over a round's class means.")
        server_batch: int = Field(1, ge=1, description="Class means in a step of the header.")

    mean: ClassVar[bool] = True
    wire: ClassVar[Wire] = ServerHeader.wire._replace(
        up={
            "prototypes": Part(tensor("C", "d"), note="r_i,c; 0 for a class that the client lacks"),
            "counts": Part(CLASSES, note="1 for each class that it has: the labels"),
        }
    )
    needs = frozenset({"classes"})

    @visit
    def train(self, task: Task) -> Visit:
        made = self.extended(task)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent = {"prototypes": prototypes.means(carry), "counts": prototypes.weights(carry, "one")}
            return sent, made.end(client, carry)[1]

        return made._replace(end=end)

    def pairs(self, got: Replies) -> tuple[Tensor, Tensor]:
        r, has = got.stacked("prototypes"), got.stacked("counts") > 0
        labels = has.nonzero()[:, 1]
        return r[has], F.one_hot(labels, has.shape[1]).to(r.dtype)
