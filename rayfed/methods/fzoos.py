"""FZooS: clients that know values alone follow the gradient of a Gaussian process over what they asked, corrected by all surrogates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from rayfed import PARAMS, SCALAR, Part, Phase, Visit, Wire, keys, mean, tensor, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases import gaussian_process as gp
from rayfed.methods._bases.zeroth_order import ZerothOrder, ZerothOrderSettings, flat, unflat, update_of
from rayfed.visits import whole

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree

ALONE = "a Gaussian process is solved at each client, whose bits a batched solver does not give"
SCALES = (0.3, 1.0, 3.0, 10.0)  # length scales of the process, of which the likeliest is taken


class FZooS(ZerothOrder):
    """Shu et al. 2023, "Federated Zeroth-Order Optimization using Trajectory-Informed Surrogate Gradients" (2308.04077).

    Client i, from z = z^r, t = 0 .. T-1: gh = gradient at z of the posterior mean (Matern 5/2) over what it has asked so far;
    g = gh + gamma_t (grad F_sur(z) - grad f_sur,i(z)), gamma_t = gamma / (t + 1); z <- a step of the optimizer along g; asks f_i(z), and,
    but in the last step, those `active` of 100 random points within `box` of z where the gradient is least certain. Server: z^{r+1} = z^r
    + server_lr mean of (z_i - z^r). Then each client asks f_i(z^{r+1}) and `probes` of 200 random points around it, fits ridge regression
    on `features` random Fourier features phi(z) = sqrt(2 / M) cos(omega z + b), the same for all, and sends the coefficients nu_i in the
    values' unit; their mean gives F_sur: grad f_sur(z) = -sqrt(2 / M) sum_j nu_j sin(omega_j z + b_j) omega_j, linear in nu. With one
    client the correction is 0.
    Ours: a client keeps its newest `history` values in the place of the nearest ones; each visit begins with `around` values within `box`
    of z^r, where the code asks them before the first round alone; length scales are chosen by likelihood out of four. Steps that raise F
    are not taken back (in the code they are, for further queries).
    Down: z (D floats) and nu (M), then z again. Up: the update (D), then nu_i (M). Kept at client i: what it asked, (D + 1) history, nu_i
    (M), and where it ended (D). At the server: z and nu.
    """

    class Settings(ZerothOrderSettings):
        features: int = Field(500, ge=1, description="M, random Fourier features.")
        scale: float = Field(
            1.0,
            gt=0,
            description="Length scale of the features, and of the kernel that says where the gradient is uncertain.",
        )
        gamma: float = Field(1.0, ge=0, description="Weight of the correction at the first local step; 0: none.")
        history: int = Field(120, ge=2, description="Values that a client keeps, the newest.")
        around: int = Field(5, ge=0, description="Values asked around the model before the first local step.")
        active: int = Field(
            5, ge=0, le=100, description="Values asked after a step where the gradient is least certain."
        )
        probes: int = Field(50, ge=0, le=200, description="Values asked for the exchange of surrogates.")
        box: float = Field(0.01, gt=0, description="Half the width of the box around z from which points are drawn.")

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS),
            "nu": Part(tensor("M"), note="coefficients of the mean surrogate"),
        },
        up={
            "delta": Part(PARAMS, update=True),
            "nu": Part(tensor("M"), note="nu_i"),
            "queries": Part(SCALAR, note="values asked for"),
        },
        keep={
            "points": Part(tensor("H", "D"), note="the newest points that were asked"),
            "values": Part(tensor("H"), note="their values"),
            "known": Part(tensor("H", dtype="bool"), note="which of them are there"),
            "nu": Part(tensor("M")),
            "z": Part(tensor("D"), note="where its last visit ended"),
        },
        server={
            "model": Part(PARAMS),
            "nu": Part(tensor("M")),
            "queries": Part(tensor(dtype="float64"), note="values that a client of every round has asked for"),
        },
    )

    def init(self, task: Task, key: int) -> Tree:
        return {
            "model": task.init_params(key),
            "nu": torch.zeros(self.settings.features, dtype=torch.float64),
            "queries": torch.zeros((), dtype=torch.float64),
        }

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        h, d = self.settings.history, sum(x.numel() for x in tree.values(task.params_like))
        return {
            "points": torch.zeros(h, d, dtype=torch.float64),
            "values": torch.zeros(h, dtype=torch.float64),
            "known": torch.zeros(h, dtype=torch.bool),
            "nu": torch.zeros(self.settings.features, dtype=torch.float64),
            "z": torch.zeros(d, dtype=torch.float64),
        }

    def surrogates(self, size: int, device: Any = None) -> tuple[Tensor, Tensor]:
        """Return omega (M, D) and b (M,) of the random features, the same for everybody."""
        rng = keys.numpy(keys.key(self.config.seed, 0, -1, "random features"))
        m = self.settings.features
        omega = rng.standard_normal((m, size)) / self.settings.scale
        b = rng.uniform(0, 2 * np.pi, m)
        return torch.from_numpy(omega).to(device), torch.from_numpy(b).to(device)

    @visit
    def train(self, task: Task) -> Visit:
        s, steps = self.settings, self.local_steps
        omega, b = self.surrogates(sum(x.numel() for x in tree.values(task.params_like)), task.device)

        def begin(client: ClientContext) -> Tree:
            own = {n: client.own[n] for n in ("points", "values", "known")}
            others = client.shared["nu"] - client.own["nu"]
            return {
                **own,
                "z": flat(client.shared["model"]),
                "others": others,
                "lr": client.info.lr,
                "queries": torch.zeros(()),
            }

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            ask = self.values(task, batch)
            asked: Tree = {n: carry[n] for n in ("points", "values", "known")}
            start = carry["z"]
            if s.around:
                asked = note(asked, near(keys.fold(key, 1), start, s.around, s.box), ask)

            def estimate(t: int, z: Tensor) -> Tensor:
                nonlocal asked
                if t:  # what the last step gave
                    asked = note(asked, z[None], ask)
                    if s.active:
                        drawn = near(keys.fold(key, 1 + t), z, 100, s.box)
                        asked = note(asked, least_certain(asked, drawn, s.active, s.scale), ask)
                own = gp.mean_gradient(asked["points"], asked["values"], asked["known"], z, SCALES)
                return own + s.gamma / (t + 1) * surrogate_gradient(carry["others"], omega, b, z)

            z = self.descend(carry["lr"], start, estimate)
            asked = note(asked, z[None], ask)
            queries = s.around + steps + s.active * (steps - 1)
            return {**carry, **asked, "z": z, "queries": carry["queries"] + queries}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            own = {**client.own, **{n: carry[n] for n in ("points", "values", "known", "z")}}
            return {"delta": update_of(client, carry["z"], task), "queries": carry["queries"]}, own

        return Visit(
            begin, [Phase(whole(), step, local_steps=steps)], end, ALONE, lambda carry: unflat(carry["z"], task)
        )

    @visit
    def exchange(self, task: Task) -> Visit:
        s = self.settings
        omega, b = self.surrogates(sum(x.numel() for x in tree.values(task.params_like)), task.device)

        def begin(client: ClientContext) -> Tree:
            return {**client.own, "new": flat(client.shared["model"]), "queries": torch.zeros(())}

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            ask = self.values(task, batch)
            asked: Tree = {n: carry[n] for n in ("points", "values", "known")}
            asked = note(asked, carry["new"][None], ask)
            if s.probes:
                half = (carry["new"] - carry["z"]).abs().mean() / 2
                drawn = near(key, carry["new"], 200, half)
                asked = note(asked, least_certain(asked, drawn, s.probes, s.scale), ask)
            return {**carry, **asked, "nu": fitted(asked, omega, b), "queries": carry["queries"] + 1 + s.probes}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            own = {n: carry[n] for n in client.own}
            return {"nu": carry["nu"], "queries": carry["queries"]}, own

        return Visit(begin, [Phase(whole(), step, counts=False)], end, ALONE)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, to = self.settings, fed.sample()
        shared = {"model": state["model"], "nu": state["nu"]}
        got = fed.ask(
            self.train, to, shared=shared, fold=(mean("delta", weight=s.weight), mean("queries", weight="one"))
        )
        model = tree.add(state["model"], got.folded["delta"], s.server_lr)
        told = fed.ask(
            self.exchange,
            got.ids,
            shared={"model": model},
            fold=(mean("nu", weight=s.weight), mean("queries", weight="one")),
        )
        nu = told.folded["nu"] if told.ids else state["nu"]
        asked = float(got.folded["queries"]) + float(told.folded["queries"])
        return {"model": model, "nu": nu, "queries": self.count(state, fed, asked)}


def near(key: Tensor, z: Tensor, n: int, half: float | Tensor) -> Tensor:
    """Return n points drawn uniformly from a box around z, (n, D)."""
    return z + half * (2 * keys.uniform(key, (n, len(z)), torch.float64) - 1)


def note(asked: Tree, points: Tensor, ask: Any) -> Tree:
    """Ask for values and return what is kept: the newest."""
    n = len(asked["values"])
    new = {
        "points": points,
        "values": ask(points),
        "known": torch.ones(len(points), dtype=torch.bool, device=points.device),
    }
    return {name: torch.cat([x, new[name]])[-n:] for name, x in asked.items()}


def least_certain(asked: Tree, candidates: Tensor, n: int, scale: float) -> Tensor:
    """Return those n candidates at which the gradient is least certain given what was asked, (n, D)."""
    found = gp.uncertainty(asked["points"], asked["known"], candidates, scale)
    return candidates[found.topk(n).indices]


def fitted(asked: Tree, omega: Tensor, b: Tensor, ridge: float = gp.NOISE) -> Tensor:
    """Return nu (M,), in the values' unit: ridge regression without intercept of the values, scaled to [0, 1], on the random features."""
    y, span = gp.scaled(asked["values"], asked["known"])
    phi = math.sqrt(2 / len(b)) * torch.cos(asked["points"] @ omega.T + b) * asked["known"][:, None]
    dual = torch.linalg.solve(phi @ phi.T + ridge * torch.eye(len(y), dtype=y.dtype, device=y.device), y)
    return span * (phi.T @ dual)


def surrogate_gradient(nu: Tensor, omega: Tensor, b: Tensor, z: Tensor) -> Tensor:
    """Return the gradient (D,) at z of the surrogate sum_j nu_j sqrt(2 / M) cos(omega_j z + b_j)."""
    return -math.sqrt(2 / len(b)) * (nu * torch.sin(omega @ z + b)) @ omega
