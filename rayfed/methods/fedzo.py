"""FedZO: clients that know values alone step along random finite differences, corrected like SCAFFOLD's steps or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, Part, Phase, Visit, Wire, keys, mean, tensor, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.zeroth_order import ZerothOrder, ZerothOrderSettings, flat, unflat, update_of
from rayfed.visits import whole

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree

ALONE = "directions are made orthonormal at each client, whose bits a batched solver does not give"


class FedZO(ZerothOrder):
    """Fang et al. 2022, "Communication-Efficient Stochastic Zeroth-Order Optimization for Federated Learning" (2201.09531), in the form
    that FZooS (2308.04077, code) is compared with.

    Client i, T steps from z^r: q random directions s_j, orthonormal; g = (1 / q) sum_j (f_i(z + mu s_j) - f_i(z)) / mu s_j; z <- a step
    of the optimizer along g, or (`correction: control`) along g + c - c_i, c_i the mean of the g of i's last visit and c their mean over
    the clients of the last round, as in SCAFFOLD. Server: z^{r+1} = z^r + server_lr mean of (z_i - z^r). With q = D directions and a
    linear f_i, g is grad f_i / D exactly. A step costs q + 1 queries.
    Down: z (D floats) and c (D). Up: the update (D) and the mean of g (D). Kept at client i: c_i (D). At the server: z and c.
    """

    class Settings(ZerothOrderSettings):
        directions: int = Field(20, ge=1, description="q, random directions of a step; at most D count.")
        mu: float = Field(0.01, gt=0, description="Length of a finite difference.")
        correction: Literal["none", "control"] = Field("none", description="Whether steps are corrected by c - c_i.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS), "c": Part(tensor("D"))},
        up={
            "delta": Part(PARAMS, update=True),
            "c": Part(tensor("D"), note="mean of its estimates"),
            "queries": Part(SCALAR, note="values asked for"),
        },
        keep={"c_i": Part(tensor("D"))},
        server={
            "model": Part(PARAMS),
            "c": Part(tensor("D")),
            "queries": Part(tensor(dtype="float64"), note="values that a client of every round has asked for"),
        },
    )

    def init(self, task: Task, key: int) -> Tree:
        zero = torch.zeros((), dtype=torch.float64)
        return {"model": task.init_params(key), "c": self.own_init(task, 0, 0)["c_i"], "queries": zero}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"c_i": torch.zeros(sum(x.numel() for x in tree.values(task.params_like)), dtype=torch.float64)}

    @visit
    def train(self, task: Task) -> Visit:
        s, steps = self.settings, self.local_steps

        def begin(client: ClientContext) -> Tree:
            z = flat(client.shared["model"])
            drift = client.shared["c"] - client.own["c_i"] if s.correction == "control" else torch.zeros_like(z)
            return {
                "z": z,
                "drift": drift,
                "sum": torch.zeros_like(z),
                "lr": client.info.lr,
                "queries": torch.zeros(()),
            }

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            ask, total = self.values(task, batch), carry["sum"]
            q = min(s.directions, len(carry["z"]))

            def estimate(t: int, z: Tensor) -> Tensor:
                nonlocal total
                found = differences(ask, z, directions(keys.fold(key, t), len(z), q), s.mu)
                total = total + found / steps
                return found + carry["drift"]

            z = self.descend(carry["lr"], carry["z"], estimate)
            return {**carry, "z": z, "sum": total, "queries": carry["queries"] + (q + 1) * steps}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent = {"delta": update_of(client, carry["z"], task), "c": carry["sum"], "queries": carry["queries"]}
            return sent, {"c_i": carry["sum"]}

        return Visit(
            begin, [Phase(whole(), step, local_steps=steps)], end, ALONE, lambda carry: unflat(carry["z"], task)
        )

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        got = fed.ask(
            self.train, fed.sample(), shared={"model": state["model"], "c": state["c"]},
            fold=(mean("delta", weight=s.weight), mean("c", weight=s.weight), mean("queries", weight="one")),
        )  # fmt: skip
        return {
            "model": tree.add(state["model"], got.folded["delta"], s.server_lr),
            "c": got.folded["c"] if got.ids else state["c"],
            "queries": self.count(state, fed, float(got.folded["queries"])),
        }


def directions(key: Tensor, size: int, n: int) -> Tensor:
    """Return n orthonormal random directions, (n, D)."""
    q, r = torch.linalg.qr(keys.normal(key, (size, n), torch.float64))
    return (q * torch.sign(r.diagonal())).T


def differences(ask: Any, z: Tensor, along: Tensor, mu: float) -> Tensor:
    """Return (1 / q) sum_j (f(z + mu s_j) - f(z)) / mu s_j, (D,): one value more than directions is asked for."""
    found = ask(torch.cat([z[None], z + mu * along]))
    return (found[1:] - found[0]) @ along / (mu * len(along))
