"""FedEx: local hyperparameters are tuned within one run, by a distribution over candidates from which each client of a round draws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from rayfed import ANY, PARAMS, SCALAR, MethodSettings, Part, Phase, Wire, keys, mean, sgd_visit, tensor, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.one_model import OneModel
from rayfed.training import work
from rayfed.visits import accumulate, average, once, steps

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config
    from rayfed.visits import Info

GROUPS = ("lr", "weight_decay", "steps")
LEAST = 1e-8  # chance of a candidate that a gradient is divided by


class FedEx(OneModel):
    """Khodak et al. 2021, "Federated Hyperparameter Tuning: Challenges, Baselines, and Connections to Weight-Sharing" (NeurIPS 2021,
    2106.04502), exponentiated gradient; step sizes and baseline as in FederatedScope's code (FedHPO-B, 2206.03966).

    For each group g of candidates (rates, weight decays, numbers of steps) the server has theta_g = exp(z_g), at first uniform. Client k
    of a round draws i_k from theta_g, and has the loss on its validation rows before (b_k) and after (a_k) local training with these
    candidates. Server: models as in FedAvg (the candidates share weights). s_k = a_k, or a_k - b_k (`feedback: change`); w_k by
    validation rows; lambda the mean of earlier rounds' sum_k w_k s_k, `discount` times the weight a round, 0 in the first;
    grad_g[i] = sum over k with i_k = i of w_k (s_k - lambda) / theta_g[i]; z_g <- z_g - eta_g grad_g, then normalised;
    eta_g = sqrt(2 ln c_g) over sqrt(t) (`auto`), the root of the sum of squared largest entries so far (`adaptive`), this round's largest
    entry (`aggressive`), or 1 (`constant`). Once the entropy of theta is below `cutoff`, clients get the most probable candidates and
    theta stays. One candidate in each group is FedAvg to the bit. What is tuned is judged by validation rows alone; the model averages
    clients that trained at different rates; and the server reads losses of single clients. A client that diverges sends nothing, so that
    nothing tells the server of a candidate with which all do.
    Down: the model (P floats), a number per group. Up: the update (P), two losses and a number of rows. Kept at clients: nothing.
    At the server: the model, z_g, and the baseline's two sums.
    """

    logs: ClassVar = {
        "arms/entropy": ("entropy of the candidates' distribution, all groups together", "nats"),
        "arms/lr": ("mean factor of the learning rate under it", "-"),
    }

    class Settings(MethodSettings):
        lr: tuple[Annotated[float, Field(gt=0)], ...] = Field(
            (0.1, 0.3, 1.0, 3.0, 10.0), min_length=1, description="Candidates: factors of the round's learning rate."
        )
        weight_decay: tuple[Annotated[float, Field(ge=0)], ...] = Field(
            (), description="Candidates of an L2 penalty that is added to gradients; none: the optimizer's alone."
        )
        steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
            (), description="Candidates of the number of local steps; none: the config's local work."
        )
        feedback: Literal["after", "change"] = Field(
            "after", description="What counts: the validation loss after training, or less the one before."
        )
        discount: float = Field(
            0.0,
            ge=0,
            le=1,
            description="Weight of a round over the next one's in what is taken off it, earlier rounds' mean.",
        )
        step: Literal["auto", "adaptive", "aggressive", "constant"] = Field(
            "aggressive", description="eta_g over sqrt(2 ln c_g)."
        )
        cutoff: float = Field(0.0, ge=0, description="Entropy (nats) below which nothing is drawn any more; 0: never.")

        @field_validator("lr", "weight_decay", "steps")
        @classmethod
        def _different(cls, v: tuple[Any, ...]) -> tuple[Any, ...]:
            if len(set(v)) < len(v):
                raise ValueError(f"{list(v)} found, allowed: each candidate once")
            return v

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS),
            "lr": Part(SCALAR, note="the client's candidate: a factor of the round's rate"),
            "weight_decay": Part(SCALAR, note="likewise, where there are some"),
            "steps": Part(tensor(dtype="int64"), note="likewise"),
        },
        up={
            "delta": Part(PARAMS, update=True),
            "before": Part(SCALAR, note="validation loss before training"),
            "after": Part(SCALAR, note="validation loss after training"),
            "rows": Part(SCALAR, note="validation rows"),
        },
        server={
            "model": Part(PARAMS),
            "z": Part(ANY, note="group -> log probabilities of its candidates"),
            "squares": Part(ANY, note="group -> sum of squared largest entries of its gradients"),
            "past": Part(tensor(2, dtype="float64"), note="discounted sums of feedback and of ones"),
            "told": Part(tensor(dtype="int64"), note="rounds that have moved z"),
        },
    )

    def check(self, config: Config) -> list[str]:
        if config.federation.split.val:
            return []
        return [
            "federation.split.val: 0 found, fedex compares candidates by the clients' validation rows; allowed: a share above 0, 0.2 say"
        ]

    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """Return group -> its candidates, of the groups that have some."""
        return {g: found for g in GROUPS if (found := getattr(self.settings, g))}

    @visit
    def train(self, task: Task) -> Visit:
        decays, counts = bool(self.settings.weight_decay), self.settings.steps

        def start(client: ClientContext) -> Tree:
            found = {"model": client.shared["model"]}
            return {**found, "decay": client.mine["weight_decay"].to(task.dtype)} if decays else found

        def rate(info: Info, mine: Tree) -> Tensor:
            return info.lr * mine["lr"].to(info.lr.dtype)

        def decay(gradient: Tree, carry: Tree) -> Tree:
            return tree.add(gradient, carry["model"], carry["decay"])

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent = {
                "delta": tree.sub(carry["model"], client.shared["model"]),
                "before": carry["before"], "after": average(carry)["loss"], "rows": carry["n"],
            }  # fmt: skip
            return sent, client.own

        over = steps(max(counts), each="steps") if counts else work(self.local)
        made = sgd_visit(
            task.loss, self.local, start=start, hook=decay if decays else None, end=end, phases=[(over, None)], lr=rate,
            before=[_measured(task, "before")],
        )  # fmt: skip
        return made._replace(phases=[*made.phases, _measured(task, "after")])

    def init(self, task: Task, key: int) -> Tree:
        found = self.candidates()
        return {
            "model": task.init_params(key),
            "z": {g: torch.full((len(c),), -math.log(len(c)), dtype=torch.float64) for g, c in found.items()},
            "squares": {g: torch.zeros((), dtype=torch.float64) for g in found},
            "past": torch.zeros(2, dtype=torch.float64),
            "told": torch.zeros((), dtype=torch.int64),
        }

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        to, z = fed.sample(), state["z"]
        values = {
            g: torch.tensor(c, dtype=torch.int64 if g == "steps" else torch.float64)
            for g, c in self.candidates().items()
        }
        drawn = {g: self._draw(z, g, fed) for g in z}
        mine = {c: {g: values[g][drawn[g][c]] for g in z} for c in to}
        got = fed.ask(
            self.train, to, shared={"model": state["model"]}, mine=mine, fold=mean("delta", weight="examples")
        )
        fed.log("arms/entropy", self.entropy(z))
        fed.log("arms/lr", float(z["lr"].exp() @ values["lr"]))
        model = tree.add(state["model"], got.folded["delta"])
        model = task.keep_averages(model, state["model"], got.folded["delta"])
        told = self._told(state, {g: torch.from_numpy(drawn[g][got.ids]) for g in z}, got) if got.ids else {}
        return {**state, "model": model, **told}

    def entropy(self, z: Tree) -> float:
        """Return the entropy of the joint distribution of all groups' candidates, in nats."""
        return max(0.0, -sum(float(x.exp() @ x) for x in z.values()))

    def _draw(self, z: Tree, group: str, fed: Fed) -> np.ndarray:
        """Return everybody's candidate of a group, (N,) places: by key, whoever else takes part."""
        theta = z[group].exp().numpy()
        if self.entropy(z) < self.settings.cutoff:
            return np.full(fed.population, theta.argmax())
        u = keys.numpy(fed.key(f"candidates of {group}")).random(fed.population)
        found: np.ndarray = np.minimum(np.searchsorted(np.cumsum(theta), u, side="right"), len(theta) - 1)
        return found

    def _told(self, state: Tree, drawn: Tree, got: Any) -> Tree:
        """Return what the replies change of z and of what it is moved with. drawn: group -> the candidate of each reply, (n,)."""
        before, after, rows = (got.stacked(part).double() for part in ("before", "after", "rows"))
        if self.entropy(state["z"]) < self.settings.cutoff or not rows.sum():
            return {}
        weights = rows / rows.sum()
        feedback = after - before if self.settings.feedback == "change" else after
        total, weight = state["past"].tolist()
        baseline = total / weight if weight else 0.0
        told = state["told"] + 1
        z, squares = {}, {}
        for g, x in state["z"].items():
            gradient = slope(x, drawn[g], weights, feedback - baseline)
            largest = gradient.abs().max()
            squares[g] = state["squares"][g] + largest**2
            z[g] = moved(x, gradient, self._over(told, squares[g], largest))
        now = torch.stack([(weights * feedback).sum(), torch.ones((), dtype=torch.float64)])
        return {"z": z, "squares": squares, "past": self.settings.discount * state["past"] + now, "told": told}

    def _over(self, told: Tensor, squares: Tensor, largest: Tensor) -> Tensor:
        """Return what sqrt(2 ln c) is divided by."""
        kinds = {
            "auto": told.double().sqrt(),
            "adaptive": squares.sqrt(),
            "aggressive": largest,
            "constant": torch.ones((), dtype=torch.float64),
        }
        return kinds[self.settings.step]


def slope(z: Tensor, drawn: Tensor, weights: Tensor, feedback: Tensor) -> Tensor:
    """Return the gradient by candidate, (c,): sum over the replies that drew it of weight times feedback, over its chance."""
    return torch.zeros_like(z).index_add(0, drawn, weights * feedback) / z.exp().clamp(min=LEAST)


def moved(z: Tensor, gradient: Tensor, over: Tensor) -> Tensor:
    """Return log probabilities after a step of sqrt(2 ln c) / over, normalised; as they were where there is no step."""
    if not over or len(z) == 1:
        return z
    z = z - math.sqrt(2 * math.log(len(z))) / over * gradient
    return z - torch.logsumexp(z, 0)


def _measured(task: Task, name: str) -> Phase:
    """Return a phase over the validation rows that sums their losses; the one after training keeps the mean before it as `before`."""

    def enter(client: ClientContext, carry: Tree) -> Tree:
        zero = torch.zeros((), dtype=task.dtype, device=task.device)
        kept = {"before": average(carry)["loss"]} if name == "after" else {}
        rest = {n: x for n, x in carry.items() if n not in ("sum", "n", "opt", "lr", "left")}
        return {**rest, **kept, "sum": {"loss": zero}, "n": zero.clone()}

    def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
        return {**carry, **accumulate(carry, {"loss": task.loss(carry["model"], batch)}, batch["w"])}

    return Phase(once("val"), step, enter, counts=False)
