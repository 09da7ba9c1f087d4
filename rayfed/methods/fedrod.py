"""Fed-RoD: a generic head trained with a loss that is fair to all classes, and a private one on top of it for the client's own mix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import ANY, MethodSettings, Part, Visit, Wire, mean, model_of, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.one_model import OneModel
from rayfed.task import needs_classes
from rayfed.training import clipped_apart

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.partition import Federation
    from rayfed.visits import Batch


class FedRoD(OneModel):
    """Chen & Chao 2022, "On Bridging Generic and Personalized Federated Learning for Image Classification" (ICLR 2022, 2107.00778),
    with linear personal heads (not the paper's other kind, made by a hypernetwork).

    f: features of the model, h: its last linear layer, p_i: another one at client i, n_i,c: its rows of class c. On each batch
        (f, h) <- SGD on the balanced softmax  -log( n_i,y^gamma e^{h_y} / sum_c n_i,c^gamma e^{h_c} ),
        p_i <- SGD on cross-entropy of h(z) + p_i(z), with z = f(x) and h(z) held;
    keeps p_i, sends the update of (f, h). Server: FedAvg of (f, h), the generic model, which `global` scores. A client is
    served h + p_i on f. p_i starts at 0, so a client that never took part, a held-out one too, is served the generic model [ours].
    `gamma: 0` trains (f, h) as FedAvg does; `local.clip` is of (f, h) and of p_i, each by itself.
    `local.label_smoothing` smooths the personal loss alone: absent classes have no generic one.
    Down: (f, h) (P floats). Up: its update (P), n_i. Kept at client i: p_i (C d + C). At the server: (f, h).
    """

    class Settings(MethodSettings):
        gamma: float = Field(
            1.0, ge=0, description="Exponent of class counts in the generic loss; 0: plain cross-entropy."
        )

    wire: ClassVar[Wire] = OneModel.wire._replace(
        keep={"personal": Part(ANY, private=True, note="p_i: the last linear layer's entries")}
    )

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "fedrod weighs classes by their counts")

    def splits_model(self) -> bool:
        return True

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"personal": tree.map(torch.zeros_like, task.classifier(task.params_like))}

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            weight = client.info.counts.to(task.dtype).pow(self.settings.gamma)
            trained = {**client.shared["model"], **_named(client.own["personal"])}
            return {"model": trained, "prior": weight.log()}  # classes that it lacks leave the sum

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            model = {n: params[n] for n in task.params_like}
            with task.training(batch, key):
                z = task.features(model, batch["x"])
            generic = task.classify(task.classifier(model), z)
            personal = generic.detach() + task.classify(_taken(params), z.detach())
            fair = task.cross_entropy(generic + carry["prior"], batch["y"])
            own = task.cross_entropy(personal, batch["y"], key)
            return fair + own  # of unlike parameters: each has its own loss's gradient

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            delta = {n: carry["model"][n] - p for n, p in client.shared["model"].items()}
            return {"delta": delta}, {"personal": _taken(carry["model"])}

        local, hook = clipped_apart(self.local, lambda n: n.startswith(PERSONAL))
        made = sgd_visit(task.loss, local, start=start, end=end, objective=objective, hook=hook)
        return made._replace(local=lambda carry: _served(task, carry["model"], _taken(carry["model"])))

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"))
        return {"model": tree.add(state["model"], got.folded["delta"])}

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: _served(task, client.shared["model"], client.own["personal"]))


PERSONAL = "personal head/"  # before the names of p_i's entries, where it trains beside the model


def _named(personal: Tree) -> Tree:
    return {PERSONAL + n: p for n, p in personal.items()}


def _taken(params: Tree) -> Tree:
    return {n.removeprefix(PERSONAL): p for n, p in params.items() if n.startswith(PERSONAL)}


def _served(task: Task, model: Tree, personal: Tree) -> Tree:
    """Return the one network that answers h(z) + p(z): both are linear on the same features."""
    names = {n: n.rpartition(".")[2] for n in task.classifier_names}
    return {n: model[n] + personal[names[n]] if n in names else model[n] for n in task.params_like}
