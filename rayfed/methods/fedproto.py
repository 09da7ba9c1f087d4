"""FedProto: clients share the mean features of their classes, and are pulled towards the means over all clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import CLASSES, MethodSettings, Part, Visit, Wire, model_of, sgd_visit, total, visit
from rayfed.lazy import torch
from rayfed.methods._bases import prototypes
from rayfed.methods._bases.prototypes import OwnModel
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.visits import Batch


class FedProto(OwnModel):
    """Tan et al. 2022, "FedProto: Federated Prototype Learning across Heterogeneous Clients" (AAAI 2022, 2105.00243).

    Client i trains its own model v_i = (f_i, h_i) on cross-entropy + lam |f_i(x) - P_y|^2 / d, P_c the global prototype of class c
    (no such term for a class without one); then sends P_i,c, the mean of f_i over its training rows of c, in evaluation mode, for
    each class that it has. Server: P_c <- the mean over the clients that sent c, equal weights [code]; the paper's equation 6
    weighs by rows (`weight: examples`; its further factor 1 / |N_c| is left out, as in the code). A class that nobody sent keeps
    its prototype [ours: the code forgets it].
    The pull is the code's: of each row, over d, and not of class means as in equation 7. The code's P_i,c are means over features as they
    come up in training.
    `predict: prototype`: a client's answer is the class whose global prototype is nearest to f_i(x) (the paper's equation 4),
    `head`: h_i's; `local` scores the head in either case. `lam: 0` with `head` is local training to the bit.
    Down: P (of each known class d floats and its label). Up: P_i,c (likewise), which with one row of a class is that row's features.
    Kept at client i: v_i (P floats). At the server: P.
    """

    class Settings(MethodSettings):
        lam: float = Field(1.0, ge=0, description="Weight of the distance to global prototypes.")
        weight: Literal["one", "examples"] = Field(
            "one", description="Weights of clients in a prototype: equal (code), or by their rows of the class."
        )
        predict: Literal["prototype", "head"] = Field(
            "prototype", description="What answers: the nearest global prototype, or the client's last layer."
        )

    wire: ClassVar[Wire] = Wire(
        down={"prototypes": Part(tensor("C", "d")), "known": Part(CLASSES, note="1 where there is a prototype")},
        up={
            "prototypes": Part(tensor("C", "d"), note="times `counts`; 0 for a class that the client lacks"),
            "counts": Part(CLASSES, note="weights of the client's prototypes"),
        },
        keep=OwnModel.wire.keep,
        server={"prototypes": Part(tensor("C", "d")), "known": Part(CLASSES)},
    )

    needs = frozenset({"classes"})

    def init(self, task: Task, key: int) -> Tree:
        zeros = torch.zeros(task.classes, task.feature_size, dtype=task.dtype)
        return {"prototypes": zeros, "known": zeros[:, 0].clone()}

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings

        def start(client: ClientContext) -> Tree:
            return {"model": client.own["model"], **(client.shared if s.lam else {})}

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            with task.training(batch, key):
                h = task.features(params, batch["x"])
            loss = task.cross_entropy(task.classify(task.classifier(params), h), batch["y"], key)
            apart = (h - carry["prototypes"][batch["y"]]).square().mean(-1) * carry["known"][batch["y"]]
            return loss + s.lam * apart

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            w = prototypes.weights(carry, s.weight)
            sent = {"prototypes": prototypes.means(carry) * w[:, None], "counts": w}
            return sent, {"model": carry["inner"]["model"]}

        made = sgd_visit(task.loss, self.local, start=start, objective=objective if s.lam else None)
        after = prototypes.class_means(task, lambda carry: carry["model"])
        return Visit(made.begin, [*made.phases, after], end, local=lambda carry: carry["inner"]["model"])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared=state, fold=(total("prototypes"), total("counts")))
        if not got.ids:
            return state
        counts = got.folded["counts"]
        found = prototypes.average(got.folded["prototypes"], counts, state["prototypes"])
        return {"prototypes": found, "known": torch.maximum(state["known"], (counts > 0).to(counts.dtype))}

    def serve(self, state: Tree) -> Tree:
        return state if self.settings.predict == "prototype" else {}

    def view(self, task: Task) -> Visit:
        if self.settings.predict == "head":
            return model_of(lambda client: client.own["model"])
        return model_of(lambda client: {"own": client.own["model"], **client.shared})

    def logits(self, task: Task, model: Tree, x: Tensor) -> Tensor:
        return prototypes.answer(task, model, x) if self.settings.predict == "prototype" else task.apply(model, x)
