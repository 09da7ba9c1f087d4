"""FeTS Challenge, task 1: aggregation and choice of clients under a simulated clock, scored by how fast the model gets good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import (
    PARAMS,
    SCALAR,
    Method,
    MethodSettings,
    Need,
    Part,
    Visit,
    Wire,
    keys,
    mean,
    measure,
    sgd_visit,
    transform,
    tree,
    visit,
)
from rayfed.lazy import torch
from rayfed.visits import once
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation

# Seconds in the real federation, least and greatest: of an example's training and validation, and of the model down and up.
COMPUTE = np.array([[1.8, 20.7], [9.7, 40.2]])
NETWORK = np.array([[13.0, 217.0], [20.0, 431.0]])
SPREAD = 0.1  # deviation of a duration, of its mean
TABLE_SEED = 0xFEEDFACE


class FeTS(Method):
    """Pati et al. 2021, "The Federated Tumor Segmentation (FeTS) Challenge" (2105.05874), task 1, after the organisers' code.

    Round r: every client of the round is sent x^r and scores it on its validation rows by the task's first measure of which higher
    is better (Dice, accuracy), s_r their mean; those that `choose` takes train it as well and send u_i. Server: `mean` x + sum (n_i
    / n) u_i; `clipped`, each u_i first cut to the `percentile` of |u| over all entries of a tensor and all clients; `momentum`, v
    <- beta v + mean, x <- x + v.
    The clock: client i takes download + n_val t_val, and where it trains + E n_train t_train + n_val t_val + upload seconds, each
    part drawn anew in each round for each client, Normal(m, (m / 10)^2) and at least 1 s; the round takes as long as the slowest,
    whether it trains or not. Its means are drawn once for each client, the same for every seed: log-uniform in the real federation's
    ranges, one number for its computer, one for its network. With T the seconds so far and W the `budget`:
    best <- max(best, s_r), A <- A + best dt, convergence = (A + (W - T) best) / W. A round that begins after W does nothing.
    `choose: skip_slowest` leaves out the third of the clients that last took longest, except in every third round.
    Down: the model (P floats). Up: the score, and of who trains the update (P), n_i. Kept at clients: nothing. At the server: x, v, the
    clients' last times.
    """

    no_rule = "it has the challenge's own rules (`aggregation`)"

    class Settings(MethodSettings):
        needs: ClassVar = {
            "percentile": (Need("aggregation", ("clipped",)),),
            "momentum": (Need("aggregation", ("momentum",)),),
        }

        aggregation: Literal["mean", "clipped", "momentum"] = Field("mean", description="The server's rule.")
        percentile: float = Field(80.0, gt=0, le=100, description="Of |u| in a tensor, to which entries are cut.")
        momentum: float = Field(0.9, ge=0, lt=1, description="beta.")
        choose: Literal["everybody", "skip_slowest"] = Field(
            "everybody", description="Who of a round's clients trains."
        )
        budget: float = Field(604800.0, gt=0, description="W, simulated seconds: a week.")

    logs: ClassVar = {
        "fets/score": ("score of the round's model on validation rows, mean over clients", "of the measure"),
        "fets/convergence": ("best score so far, mean over the budget of time, the rest projected", "of the measure"),
        "fets/hours": ("simulated time so far", "hours"),
        "fets/trained": ("clients that trained", "clients"),
    }
    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS), "held": Part(PARAMS, note="the model that it has been sent already")},
        up={
            "delta": Part(PARAMS, update=True),
            "score": Part(SCALAR, note="mean over its validation rows"),
            "n": Part(SCALAR, note="of how many rows"),
        },
        server={
            "model": Part(PARAMS), "v": Part(PARAMS), "took": Part(tensor("N"), note="seconds of its last training round"),
            "clock": Part(tensor(3), note="T, best, A"),
        },
    )  # fmt: skip

    def check(self, config: Config) -> list[str]:
        return transform.own_weights(config, "rules of its own") if self.settings.aggregation == "clipped" else []

    def fits(self, federation: Federation) -> list[str]:
        from rayfed.task import of

        if not len(federation.val.rows):
            return [
                "federation.split.val: 0 found, and fets scores on validation rows; allowed: a share of a client's rows, e.g. 0.2"
            ]
        cls = of(federation.task)
        if any(
            m.of == "rows" and m.better == "higher" for m in cls.measured(cls.Settings(**self.config.task.kind.options))
        ):
            return []
        return [
            f"method.name: fets found, task.kind: {federation.task} measures no row by a number of which higher is better"
        ]

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part == "held" else super().cost(part, sent)

    def init(self, task: Task, key: int) -> Tree:
        zeros = {"took": torch.zeros(task.population).double(), "clock": torch.zeros(3).double()}
        return {"model": task.init_params(key), "v": tree.zeros(task.params_like), **zeros}

    @visit
    def score(self, task: Task) -> Visit:
        name = next(m.name for m in task.measures if m.of == "rows" and m.better == "higher")
        return measure(
            lambda model, batch: {"score": task.metrics(model, batch)[name]},
            lambda client: {"score": torch.zeros((), dtype=task.dtype, device=task.device)},
            over=once("val"),
            model=lambda client: client.shared["model"],
        )

    @visit
    def train(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"delta": tree.sub(carry["model"], client.shared["held"])}, client.own

        return sgd_visit(task.loss, self.local, start=lambda client: {"model": client.shared["held"]}, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, there = self.settings, np.array(fed.sample(), np.int64)
        if not len(there):
            return state
        if float(state["clock"][0]) > s.budget:
            self._say(state["clock"], fed)
            fed.elapse(0.0)
            return state
        trains = self._chosen(there, state["took"].numpy(), fed.round)
        keep = "delta" if s.aggregation == "clipped" else ()
        fold = mean("delta", weight="examples")
        got = fed.ask(self.train, trains, shared={"held": state["model"]}, fold=fold, keep=keep)
        # Asked second, of the same model: its clients then train on the batches that they have under FedAvg.
        seen = fed.ask(self.score, there.tolist(), shared={"model": state["model"]})
        after = self._advanced(state, seen, trains, there, fed)
        update, v = got.folded["delta"], state["v"]
        if s.aggregation == "clipped" and got.ids:
            update = clipped_mean(got.stacked("delta"), got.examples / got.examples.sum(), s.percentile)
        elif s.aggregation == "momentum":
            v = update = tree.add(tree.scale(v, s.momentum), update)
        model = tree.add(state["model"], update)
        return {"model": task.keep_averages(model, state["model"], got.folded["delta"]), "v": v, **after}

    def _chosen(self, there: np.ndarray, took: np.ndarray, round: int) -> list[int]:
        """Return who trains, of the round's clients."""
        if self.settings.choose == "everybody" or round % 3 == 1:
            return list(map(int, there))
        slow = there[np.argsort(-took[there], kind="stable")[: len(there) // 3]]
        return [int(c) for c in there if c not in slow]

    def _advanced(self, state: Tree, seen: Replies, trains: list[int], there: np.ndarray, fed: Fed) -> Tree:
        """Return the clients' last times and the clock after this round, and log both."""
        size = [np.asarray(split.sizes()) for split in (fed.federation.train, fed.federation.val)]
        work = self.local.steps * self.local.batch_size if self.local.steps else None
        both = np.array([
            seconds(self.config.seed, fed.round, int(c), work or (self.local.epochs or 1) * int(size[0][c]), int(size[1][c]))
            for c in there
        ])  # fmt: skip
        alone, whole = both.T
        here = np.isin(there, trains)
        lasted = float(np.where(here, whole, alone).max())
        scores = [float(v) for c, v in seen.gather("score").items() if size[1][c]]
        score = float(np.mean(scores)) if scores else 0.0
        clock = advanced(state["clock"], score, lasted)
        fed.elapse(lasted)
        fed.log("fets/score", score)
        fed.log("fets/trained", len(trains))
        self._say(clock, fed)
        took = state["took"].index_put((torch.as_tensor(there[here]),), torch.as_tensor(whole[here]))
        return {"took": took, "clock": clock}

    def _say(self, clock: Tensor, fed: Fed) -> None:
        fed.log("fets/convergence", convergence(clock, self.settings.budget))
        fed.log("fets/hours", float(clock[0]) / 3600)


def seconds(seed: int, round: int, client: int, trained: int, scored: int) -> tuple[float, float]:
    """Return how long a client takes in a round for the model down and its scoring, and with training and the update up besides.

    trained: examples that its training sees; scored: its validation rows. Another client, or who trains, changes nothing of it.
    """
    at = keys.numpy(keys.key(TABLE_SEED, 0, client, "fets speeds")).uniform(size=2)
    (train, score), (down, up) = (
        np.exp(np.log(table[:, 0]) + u * np.log(table[:, 1] / table[:, 0]))
        for table, u in ((COMPUTE, at[0]), (NETWORK, at[1]))
    )
    z = keys.numpy(keys.key(seed, round, client, "fets times")).normal(size=5)
    means = np.array([down, scored * score, trained * train, scored * score, up])
    parts = np.maximum(means * (1 + SPREAD * z), 1.0)
    return float(parts[:2].sum()), float(parts.sum())


def advanced(clock: Tensor, score: float, lasted: float) -> Tensor:
    """Return T, best, A (3,) after a round whose model had a score and which lasted some seconds."""
    time, best, area = clock.tolist()
    best = max(best, score)
    return torch.tensor([time + lasted, best, area + best * lasted], dtype=torch.float64)


def convergence(clock: Tensor, budget: float) -> float:
    """Return the best score so far, mean over the budget of time, the rest of it projected."""
    time, best, area = clock.tolist()
    return float((area + (budget - time) * best) / budget)


def clipped_mean(updates: Tree, weights: Tensor, percentile: float) -> Tree:
    """Return the weighted mean of updates (n, ...) whose entries are cut, tensor by tensor, to a percentile of all their sizes."""

    def of(x: Any) -> Any:
        size = x.double().abs()
        ordered = size.flatten().sort().values
        place = (len(ordered) - 1) * percentile / 100
        low = int(place)
        most = ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
        cut = torch.where(size > most, most * x.sign(), x.double())
        return torch.tensordot(weights, cut, dims=1).to(x.dtype)

    return tree.map(of, updates)
