"""FedRE: each client sends one random mixture of its class means and the shares that made it; the server trains the header on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import CLASSES, MethodSettings, Part, Phase, Visit, Wire, keys, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases import prototypes
from rayfed.methods._bases.server_header import ServerHeader
from rayfed.visits import nothing
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Replies, Task, Tree
    from rayfed.visits import Batch


class FedRE(ServerHeader):
    """FedRE (CVPR 2026, 2511.22265): "entangled" representations, as in the authors' code.

    Client i: local SGD on cross-entropy from (f_i, h), f_i its own extractor and h the header as received; keeps f_i. With mu_i,c
    the mean of f_i over its training rows of class c, in evaluation mode after training, and u_c uniform in (0, 1], drawn anew
    in every round for each class that it has: r_c = u_c / sum u; it sends
        z_i = sum_c r_c mu_i,c   and   q_i = (r_1, .., r_C).
    Server: one pass (or `server_epochs`) over the round's pairs in batches of `server_batch`, SGD on h with the loss summed over a batch:
    -sum_c q_i,c log softmax(h(z_i))_c. h goes on from the round before; it is never an average of clients' headers.
    There is no global model: `global` scores the mean of the served models' predictions. A client that never took part, a
    held-out one too, has the run's first f.
    Down: h (C d + C floats). Up: z_i (d), and of each class that the client has its share and its label. Kept at client i: f_i
    (P - C d - C), how often it trained. At the server: h.
    """

    class Settings(MethodSettings):
        server_lr: float = Field(0.01, ge=0, description="SGD's rate for the header; 0: it stays as it was drawn.")
        server_epochs: int = Field(1, ge=1, description="Passes of the header over a round's mixtures.")
        server_batch: int = Field(32, ge=1, description="Mixtures in a step of the header, whose losses are summed.")

    mean: ClassVar[bool] = False
    wire: ClassVar[Wire] = ServerHeader.wire._replace(
        up={"mixture": Part(tensor("d"), note="z_i"), "shares": Part(CLASSES, note="q_i")}
    )
    needs = frozenset({"classes"})

    @visit
    def train(self, task: Task) -> Visit:
        def enter(client: ClientContext, carry: Tree) -> Tree:
            return {**carry, "shares": torch.zeros_like(carry["rows"])}

        def draw(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            u = (1 - keys.uniform(key, (task.classes,), task.dtype)) * (carry["rows"] > 0)
            return {**carry, "shares": u / u.sum().clamp(min=1e-30)}

        made = self.extended(task, (Phase(nothing(1), draw, enter, counts=False),))

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent = {"mixture": carry["shares"] @ prototypes.means(carry), "shares": carry["shares"]}
            return sent, made.end(client, carry)[1]

        return made._replace(end=end)

    def pairs(self, got: Replies) -> tuple[Tensor, Tensor]:
        return got.stacked("mixture"), got.stacked("shares")

    def cost(self, part: str, sent: Tree) -> int:
        if part != "shares":
            return super().cost(part, sent)
        (shares,) = tree.values(sent)
        return int((shares > 0).sum()) * 2 * shares.element_size()  # and each one's label
