"""FedMD: clients with models of their own teach one another through the mean of their answers on a public set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import (
    PARAMS,
    SCALAR,
    Method,
    MethodSettings,
    Need,
    Part,
    Phase,
    Visit,
    Wire,
    mean,
    model_of,
    sgd_visit,
    tree,
    visit,
)
from rayfed.distill import ensemble
from rayfed.lazy import torch
from rayfed.task import needs_classes
from rayfed.visits import once, whole
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.partition import Federation
    from rayfed.visits import Batch


class FedMD(Method):
    """Li, Wang 2019, "FedMD: Heterogenous Federated Learning via Model Distillation" (1910.03581), algorithm 1.

    A public set x_1 .. x_P (`federation.public`), and at each client k a model f_k of its own. A round:
        digest: f_k on the mean over the public set of |f_k(x) - q(x)|_1 / C, q the consensus [code; `digest: kl`:
            tau^2 KL(softmax(q / tau) || softmax(f_k / tau))], `digest_epochs` passes in storage order;
        revisit: f_k by local SGD on its own rows;
        communicate: sends its scores f_k(x_1) .. f_k(x_P), before the softmax.
    Server: q <- mean over the round's clients, equal weights.
    With everybody in each round this is the paper's loop, begun at its end. Before there is a consensus nothing is digested: the first
    round is training alone, in the place of the paper's training to convergence on a labelled public set and then on own rows [ours].
    The public set is taken whole, where the code draws 5,000 of its rows for each round. `digest_epochs: 0` is local training to the bit.
    There is no global model: `global` scores the mean of the served models' predictions. A client that never took part, a
    held-out one too, has the run's first model.
    Down: q (P C floats). Up: scores (P C). Kept at client k: f_k (its parameters). At the server: q.
    """

    class Settings(MethodSettings):
        digest: Literal["l1", "kl"] = Field(
            "l1", description="Distance of scores: mean absolute, or of softened answers."
        )
        digest_epochs: int = Field(1, ge=0, description="Passes over the public set in a round; 0: local training.")
        digest_lr: float | None = Field(None, gt=0, description="Rate on the public set; null: the local one.")
        tau: float = Field(1.0, gt=0, description="Temperature of `digest: kl`.")

        needs: ClassVar = {"tau": (Need("digest", ("kl",)),)}

    wire: ClassVar[Wire] = Wire(
        down={"consensus": Part(tensor("P", "C"), note="q"), "known": Part(SCALAR, note="1 once there is one")},
        up={"scores": Part(tensor("P", "C"), note="f_k of each public row")},
        keep={"model": Part(PARAMS, private=True, note="f_k")},
        server={"consensus": Part(tensor("P", "C"), note="q"), "known": Part(SCALAR)},
    )
    universal: ClassVar[str | None] = None
    needs = frozenset({"classes", "public"})

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "fedmd's clients send scores of classes")

    @property
    def rows(self) -> int:
        """Return P, the size of the public set."""
        return self.config.federation.public_rows

    def init(self, task: Task, key: int) -> Tree:
        zeros = torch.zeros(self.rows, task.classes, dtype=task.dtype)
        return {"consensus": zeros, "known": torch.zeros((), dtype=task.dtype)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"model": task.initial}

    @visit
    def train(self, task: Task) -> Visit:
        own = sgd_visit(task.loss, self.local, start=lambda client: {"model": client.own["model"]})
        learning = [self._after_digest(own.phases[0]), *own.phases[1:]] if self.settings.digest_epochs else own.phases

        def begin(client: ClientContext) -> Tree:
            digested = {"consensus": client.shared["consensus"]} if self.settings.digest_epochs else {}
            return {**own.begin(client), **digested}

        def enter(client: ClientContext, carry: Tree) -> Tree:
            return {"model": carry["model"], "scores": torch.zeros(self.rows, task.classes, dtype=task.dtype)}

        def score(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            return {**carry, "scores": task.apply(carry["model"], batch["x"])}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"scores": carry["scores"]}, {"model": carry["model"]}

        digest = self._digest(task) if self.settings.digest_epochs else []
        phases = [*digest, *learning, Phase(whole("public"), score, enter, counts=False)]
        return Visit(begin, phases, end, local=lambda carry: carry["model"])

    def _digest(self, task: Task) -> list[Phase]:
        """Return the phases over the public set, whose carry counts the rows that it has seen: `at`."""
        s = self.settings

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            with task.training(batch, key):
                f = task.apply(params, batch["x"])
            at = (carry["at"] + torch.arange(len(f), device=f.device)).clamp(max=self.rows - 1)  # padding has weight 0
            q = carry["consensus"].index_select(0, at)
            return (f - q).abs().mean(-1) if s.digest == "l1" else ensemble.kl(q, f, s.tau)

        made = sgd_visit(
            task.loss,
            self.local,
            objective=objective,
            phases=[(once("public"), everything)] * s.digest_epochs,
            lr=s.digest_lr,
        )

        def of_pass(phase: Phase) -> Phase:
            inner = phase.enter
            assert inner is not None

            def enter(client: ClientContext, carry: Tree) -> Tree:
                before = carry.get("before", carry["model"])
                at = torch.zeros((), dtype=torch.int64, device=task.device)
                return {**inner(client, carry), "before": before, "at": at}

            def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
                return {**phase.step(carry, batch, key), "at": carry["at"] + len(batch["w"])}

            return phase._replace(step=step, enter=enter, counts=False)  # own rows come in local training's order

        return [of_pass(p) for p in made.phases]

    def _after_digest(self, phase: Phase) -> Phase:
        """Return the first phase on own rows, which takes back what was digested before there was a consensus."""
        inner = phase.enter
        assert inner is not None

        def enter(client: ClientContext, carry: Tree) -> Tree:
            model = tree.where(client.shared["known"] > 0, carry["model"], carry["before"])
            return inner(client, {"model": model})

        return phase._replace(enter=enter)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared=state, fold=mean("scores", weight="one"))
        if not got.ids:
            return state
        return {"consensus": got.folded["scores"], "known": torch.ones_like(state["known"])}

    def serve(self, state: Tree) -> Tree:
        return {}

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: client.own["model"])


def everything(name: str) -> bool:
    """Return whether an entry of the model learns from the public set: each does."""
    return True
