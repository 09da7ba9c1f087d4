"""FedALA: before it trains, each client mixes the global model with its own last one, entry by entry, by weights that it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import (
    PARAMS,
    SCALAR,
    Method,
    MethodSettings,
    Part,
    Phase,
    Visit,
    Wire,
    mean,
    params_of,
    sgd_visit,
    tree,
    visit,
)
from rayfed.lazy import torch
from rayfed.methods._bases.private_layers import head_problems, missing_layers
from rayfed.training import mean_loss
from rayfed.visits import epochs
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.visits import Batch


class FedALA(Method):
    """Zhang et al. 2023, "FedALA: Adaptive Local Aggregation for Personalized Federated Learning" (AAAI 2023, 2212.01197).

    Client i has its last local model Theta_i, at first the run's initial one, and weights W_i in [0, 1] of the entries of the
    layers `adaptive`, at first 1. Given the global Theta, on each batch of a share of its training data:
        That = Theta_i + (Theta - Theta_i) * W_i  (below these layers: Theta);   W_i <- clip(W_i - eta dL(That) / dW_i, 0, 1).
    Then it trains That as in FedAvg, keeps the result as Theta_i and sends it; server: Theta <- sum_i (n_i / n) Theta_i.
    W_i learns in `start_epochs` passes when a client first has a Theta that is not its own start (from the second round on), in one
    pass later. The paper's first time ends where the loss stands still; a number of passes is ours, as is that the share is drawn
    anew in each pass and cut to whole batches. Weights learn in evaluation mode.
    Served: That, for which W_i learns one pass more that is not kept. A client that never took part, a held-out one too, is
    served Theta. `eta: 0` trains and serves FedAvg's model to the bit.
    Down: Theta (P floats). Up: Theta_i - Theta (P), n_i. Kept at client i: Theta_i (P), W_i (of the layers `adaptive`), how often
    it trained. At the server: Theta, and whose weights have learned.
    """

    no_privacy = "also trains the weights of a mixture, by a formula of its own"

    class Settings(MethodSettings):
        adaptive: tuple[str, ...] = Field(
            ("head",), min_length=1, description="Layers that are mixed: `head`, or pieces between the dots of names."
        )
        eta: float = Field(1.0, ge=0, description="Step of the weights.")
        share: float = Field(0.8, gt=0, le=1, description="Share of a client's training data that weights learn from.")
        start_epochs: int = Field(10, ge=1, description="Passes of the weights when they learn for the first time.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS, note="Theta")},
        up={"delta": Part(PARAMS, update=True)},
        keep={
            "own": Part(PARAMS, private=True, note="Theta_i"),
            "weights": Part(params_of("head"), private=True, note="W_i"),
            "visits": Part(SCALAR, private=True),
        },
        server={
            "model": Part(PARAMS, note="Theta"),
            "learned": Part(tensor("N", dtype="bool"), note="whose weights have learned"),
        },
    )

    def __init__(self, settings: Any, config: Config):
        super().__init__(settings, config)
        weights = Part(params_of(*settings.adaptive), private=True, note="W_i")
        self.wire = self.wire._replace(keep={**self.wire.keep, "weights": weights})  # type: ignore[misc]

    def fits(self, federation: Federation) -> list[str]:
        return head_problems(federation, self.settings.adaptive)

    def fits_model(self, task: Task) -> list[str]:
        return missing_layers("adaptive", self.settings.adaptive, task)

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), "learned": torch.zeros(task.population, dtype=torch.bool)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        of = params_of(*self.settings.adaptive).select(task.initial, task)
        return {"own": task.initial, "weights": tree.map(torch.ones_like, of), "visits": torch.zeros(())}

    def learning(self, task: Task, passes: int) -> Phase:
        """Return the phase in which carry["weights"] learns."""
        s = self.settings

        def enter(client: ClientContext, carry: Tree) -> Tree:
            whole = client.info.ahead // passes  # batches of a pass
            rate = client.info.lr
            return {
                "model": client.shared["model"],
                "own": client.own["own"],
                "weights": client.own["weights"],
                "at": torch.zeros_like(rate),
                "whole": whole.to(rate.dtype),
                "part": torch.ceil(whole.to(rate.dtype) * s.share - 1e-6),  # against rounding
            }

        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            def loss(weights: Tree) -> Tensor:
                return mean_loss(task.loss, aggregated(carry["model"], carry["own"], weights), batch, None)

            slopes = torch.func.grad(loss)(carry["weights"])
            moved = tree.map(lambda w, g: (w - s.eta * g).clamp(0, 1), carry["weights"], slopes)
            weights = tree.where(carry["at"] < carry["part"], moved, carry["weights"])
            after = carry["at"] + 1
            return {**carry, "weights": weights, "at": torch.where(after < carry["whole"], after, 0 * after)}

        return Phase(epochs(passes), step, enter, counts=False)

    @visit
    def adapt(self, task: Task, passes: int = 1) -> Visit:
        """Let W_i learn, for the first time; it goes on in `train`."""

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {}, {**client.own, "weights": carry["weights"]}

        return Visit(lambda client: {}, [self.learning(task, passes)], end)

    @visit
    def train(self, task: Task) -> Visit:
        """Mix, then train what came out."""
        common = sgd_visit(task.loss, self.local)
        (plain,) = common.phases

        def enter(client: ClientContext, carry: Tree) -> Tree:
            assert plain.enter is not None
            first = aggregated(carry["model"], carry["own"], carry["weights"])
            return plain.enter(client, {"model": first, "weights": carry["weights"]})

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            after = {"own": carry["model"], "weights": carry["weights"], "visits": client.own["visits"] + 1}
            return {"delta": tree.sub(carry["model"], client.shared["model"])}, after

        return Visit(lambda client: {}, [self.learning(task, 1), plain._replace(enter=enter)], end, local=common.local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        shared, clients, learned = {"model": state["model"]}, fed.sample(), state["learned"]
        first = [c for c in clients if fed.round > 1 and not learned[c]]
        more = self.settings.start_epochs - 1
        if first and more and self.settings.eta:
            fed.ask(self.adapt.with_(passes=more), first, shared=shared)
        got = fed.ask(self.train, clients, shared=shared, fold=mean("delta"))
        if fed.round > 1 and got.ids:
            learned = learned.index_fill(0, torch.tensor(got.ids), True)
        return {"model": tree.add(state["model"], got.folded["delta"]), "learned": learned}

    def view(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            mine = aggregated(carry["model"], carry["own"], carry["weights"])
            return {"model": tree.where(client.own["visits"] > 0, mine, client.shared["model"])}, client.own

        return Visit(lambda client: {}, [self.learning(task, 1)], end)


def aggregated(model: Tree, own: Tree, weights: Tree) -> Tree:
    """Return own + (model - own) * weights where there are weights, else model; written so that weights of 1 give the model's bits."""
    return {n: p + (own[n] - p) * (1 - weights[n]) if n in weights else p for n, p in model.items()}
