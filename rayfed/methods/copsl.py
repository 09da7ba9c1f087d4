"""CoPSL: Pareto fronts of several problems by one shared trunk, with every problem's head at the client that has the problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import (
    ANY,
    Method,
    MethodSettings,
    Part,
    Wire,
    mean,
    model_of,
    optimizers,
    params_but,
    params_of,
    tensor,
    visit,
)
from rayfed import tree as trees
from rayfed.lazy import torch
from rayfed.schedules import round_rate
from rayfed.training import clipped_apart, grad
from rayfed.visits import Phase, Visit, nothing

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config

HEADS, TRUNK = params_of("heads"), params_but("heads")


class CoPSL(Method):
    """Shang et al. 2024, Collaborative Pareto set learning in multiple multi-objective optimization problems (2404.01224); with
    `task.model: coaction` the task-aware transformer of CoAction (2605.01712), whose embeddings or output layers are the heads.

    One step: draw a batch of preferences for all problems; L = sum over problems i and preferences b of F_i's loss at head_i(trunk(p_b));
    a step of `local.optimizer` on trunk and heads. With one client that has all problems (task.data.together) that is the paper's
    algorithm. Several clients with a problem each are ours: the server draws the preferences and sends them with the trunk; a client
    steps its head, whose optimizer's state it keeps. trunk: server: it sends the trunk's gradient of one step, whose mean
    over the clients the
    server's optimizer of the same kind takes, which under Adam is the paper's step up to its epsilon (a mean in the place of the sum);
    client: it makes `local.steps` steps on its copy, with an optimizer's state that it keeps, and the server averages
    copies; alone: nothing is shared, one network for each problem (PSL).
    The number of preferences in a step is `local.batch_size`; there are no examples, and every problem counts alike.
    Down: trunk, preferences (E, B, m). Up: the trunk's gradient, or its change. Kept at clients: heads, the optimizer's
    state, under `alone` the trunk. At the server: trunk, and its optimizer's state.
    """

    no_privacy = "trains at drawn preferences, without examples"

    class Settings(MethodSettings):
        trunk: Literal["server", "client", "alone"] = Field(
            "server",
            description="Who steps the trunk: the server, clients between averages, or each client for itself.",
        )

    wire = Wire(
        down={"trunk": Part(TRUNK), "preferences": Part(tensor("E", "B", "m"))},
        up={"update": Part(TRUNK, update=True, note="minus the gradient of a step, or the change in several")},
        keep={
            "heads": Part(HEADS, private=True, note="of all problems; only its own move"),
            "trunk": Part(TRUNK, note="moves under trunk: alone"),
            "opt": Part(ANY, note="the optimizer's state"),
        },
        server={"trunk": Part(TRUNK), "opt": Part(ANY)},
    )
    needs: ClassVar[frozenset[str]] = frozenset({"fronts"})
    universal = None

    def check(self, config: Config) -> list[str]:
        found, steps = [], config.local.steps
        if steps is None:
            found.append(
                "local.steps: null found, copsl's clients have no examples to pass over; allowed: a number of steps"
            )
        elif steps > 1 and self.settings.trunk == "server":
            found.append(f"local.steps: {steps} found, with trunk: server a round is one step; allowed: 1")
        if config.local.schedule.within != "constant":
            found.append("local.schedule.within: linear found, copsl knows one rate in a visit; allowed: constant")
        if optimizers.is_own(config.local.optimizer):
            found.append(
                f"local.optimizer: {config.local.optimizer.name} found, copsl keeps its state; allowed: sgd, adam, adamw"
            )
        return found

    def fits_model(self, task: Task) -> list[str]:
        heads = HEADS.select(task.params_like, task)
        if heads and len(heads) < len(task.params_like):
            return []
        found = "all parameters are" if heads else "no parameter is"
        return [
            f"task.model: {self.config.task.model.name} found, of which {found} part of `heads`, which stay at the clients; allowed: a "
            "network with a module `heads` for what belongs to one problem each, and a trunk beside it"
        ]

    def init(self, task: Task, key: int) -> Tree:
        trunk = TRUNK.select(task.init_params(key), task)
        return {"trunk": trunk, "opt": optimizers.make(self.local.optimizer).init(trunk)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        heads, trunk = (s.select(task.initial, task) for s in (HEADS, TRUNK))
        moved = heads if self.settings.trunk == "server" else {**trunk, **heads}
        return {"heads": heads, "trunk": trunk, "opt": optimizers.make(self.local.optimizer).init(moved)}

    def serve(self, state: Tree) -> Tree:
        return {"trunk": state["trunk"]}

    @visit
    def train(self, task: Task) -> Visit:
        at_server, opt = self.settings.trunk == "server", optimizers.make(self.local.optimizer)
        heads = set(HEADS.select(task.params_like, task))
        bound = clipped_apart(self.local, lambda name: name in heads)[1]

        def begin(client: ClientContext) -> Tree:
            trunk = self._trunk(client)
            return {
                "model": {**trunk, **client.own["heads"]},
                "opt": client.own["opt"],
                "update": trees.zeros(trunk),
                "owned": (client.info.counts > 0).to(task.dtype),
                "preferences": client.shared["preferences"],
                "at": torch.zeros_like(client.info.client),
                "lr": client.info.lr,
            }

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            p = carry["preferences"][carry["at"]]

            def loss(model: Tree) -> Tensor:
                return (task.losses(model, p) * carry["owned"]).sum()  # type: ignore[attr-defined]

            model = carry["model"]
            slopes = grad(loss)(model)[0]
            slopes = bound(slopes, carry) if bound else slopes
            moved = {n: x for n, x in model.items() if n in heads or not at_server}
            after, state = opt.update({n: slopes[n] for n in moved}, carry["opt"], moved, carry["lr"])
            update = {n: -slopes[n] if at_server else carry["update"][n] + after[n] - model[n] for n in carry["update"]}
            return {**carry, "model": {**model, **after}, "opt": state, "update": update, "at": carry["at"] + 1}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            own = {n: x for n, x in carry["model"].items() if n in heads}
            if self.settings.trunk == "alone":
                trunk = {n: x for n, x in carry["model"].items() if n not in heads}
                return {}, {"heads": own, "trunk": trunk, "opt": carry["opt"]}
            return {"update": carry["update"]}, {**client.own, "heads": own, "opt": carry["opt"]}

        return Visit(begin, [Phase(nothing(self.local.steps or 1), step)], end, local=lambda carry: carry["model"])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        key = torch.tensor(fed.key("preferences"), device=task.device)
        shape = (self.local.steps or 1, self.local.batch_size)
        alone = self.settings.trunk == "alone"
        sent = {"preferences": task.preferences(key, shape), **({} if alone else {"trunk": state["trunk"]})}  # type: ignore[attr-defined]
        got = fed.ask(self.train, fed.sample(), shared=sent, fold=() if alone else mean("update", weight="one"))
        if alone or not len(got):
            return state
        update = got.folded["update"]
        if self.settings.trunk == "client":
            return {**state, "trunk": trees.add(state["trunk"], update)}
        rate = round_rate(self.local, fed.round, fed.config.rounds)
        opt = optimizers.make(self.local.optimizer)
        trunk, after = opt.update(trees.scale(update, -1.0), state["opt"], state["trunk"], rate)
        return {"trunk": trunk, "opt": after}

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: {**self._trunk(client), **client.own["heads"]})

    def _trunk(self, client: ClientContext) -> Tree:
        """Return the trunk that a client works with."""
        found: Tree = client.own["trunk"] if self.settings.trunk == "alone" else client.shared["trunk"]
        return found
