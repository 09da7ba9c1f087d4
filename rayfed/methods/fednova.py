"""FedNova: normalised averaging, so that clients who take more steps do not count for more."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import PARAMS, SCALAR, Method, MethodSettings, Part, Wire, mean, schedules, sgd_visit, tree, visit

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config


class FedNova(Method):
    """Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization" (2007.07481).

    Client i takes tau_i steps; |a_i| is the sum of the weights with which its gradients entered y - x^r: tau_i for SGD,
    [tau - rho (1 - rho^tau) / (1 - rho)] / (1 - rho) with momentum rho, (1 - (1 - lr mu)^tau) / (lr mu) with a proximal
    term mu. Sends u_i / |a_i| and its norm.
    Server, p_i = n_i / n over the round: x <- x + tau_eff sum_i p_i u_i / |a_i|; tau_eff = sum_i p_i |a_i|, with mu > 0
    sum_i p_i tau_i. With `server_momentum` beta: v <- beta v + that step; x <- x + v. The published code gathers steps over
    the local rate eta and multiplies by today's, m <- beta m + step / eta; x <- x + eta m: so v is held in units of the
    round's rate, and where `local.schedule` moves it, v <- (eta_r / eta_{r-1}) v first.
    Down: the model (P floats). Up: P floats and one number. Kept at clients: nothing. At the server: x, v.
    Local momentum starts anew in every visit.
    """

    class Settings(MethodSettings):
        mu: float = Field(0.0, ge=0, description="Proximal term at clients, as in FedProx.")
        server_momentum: float = Field(0.0, ge=0, lt=1, description="Heavy-ball momentum at the server, as in FedAvgM.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={
            "delta": Part(PARAMS, update=True, note="u_i / |a_i|"),
            "tau": Part(SCALAR, note="|a_i|, or with mu > 0 the number of steps"),
        },
        server={"model": Part(PARAMS), "v": Part(PARAMS, note="in units of the round's rate")},
    )

    def check(self, config: Config) -> list[str]:
        o = config.local.optimizer
        if o.name != "sgd" or o.weight_decay or o.nesterov:
            return ["local.optimizer: fednova needs sgd without weight decay and nesterov; momentum is accounted for"]
        out = []
        if config.local.schedule.within != "constant":
            out.append("local.schedule.within: fednova's norm is known for one rate in a visit; allowed: constant")
        if o.momentum and self.settings.mu:
            out.append("method.mu: fednova's norm is known for momentum or for a proximal term, not for both")
        return out

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), "v": tree.zeros(task.params_like)}

    @visit
    def train(self, task: Task) -> Visit:
        mu, rho = self.settings.mu, self.local.optimizer.momentum

        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], **({"anchor": client.shared["model"]} if mu else {})}

        def pull(gradient: Tree, carry: Tree) -> Tree:
            return tree.add(gradient, tree.sub(carry["model"], carry["anchor"]), mu)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            norm = norm_of(client.info.steps.to(client.info.lr.dtype), rho, mu, client.info.lr)
            moved = tree.sub(carry["model"], client.shared["model"])
            delta = {n: moved[n] if n in task.buffers else d for n, d in tree.scale(moved, 1 / norm).items()}
            return {"delta": delta, "tau": client.info.steps.to(client.info.lr.dtype) if mu else norm}, client.own

        return sgd_visit(task.loss, self.local, start=start, hook=pull if mu else None, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(
            self.train, fed.sample(), shared={"model": state["model"]},
            fold=(mean("delta", weight="examples"), mean("tau", weight="examples")),
        )  # fmt: skip
        now, before = (schedules.round_rate(self.local, max(1, r), fed.rounds) for r in (fed.round, fed.round - 1))
        v = tree.scale(
            state["v"], now / before if before else 0.0
        )  # also where nobody replied: it is in this round's units
        if not got.ids:
            return {**state, "v": v}
        v = tree.add(tree.scale(got.folded["delta"], got.folded["tau"]), v, self.settings.server_momentum)
        return {"model": task.keep_averages(tree.add(state["model"], v), state["model"], got.folded["delta"]), "v": v}


def norm_of(tau: Tensor, rho: float, mu: float, lr: Any) -> Tensor:
    """Return |a_i|, how much of one gradient tau local steps add up to; 0-d."""
    if rho:
        return (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
    if mu:
        return (1 - (1 - lr * mu) ** tau) / (lr * mu)
    return tau
