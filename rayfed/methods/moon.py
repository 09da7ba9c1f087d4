"""MOON: features of local training stay near the global model's and away from those of the client's last local model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Wire, mean, sgd_visit, tree, visit
from rayfed.lazy import F
from rayfed.methods._bases.one_model import OneModel
from rayfed.task import needs_classes

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.partition import Federation
    from rayfed.visits import Batch


class MOON(OneModel):
    """Li et al. 2021, "Model-Contrastive Federated Learning" (CVPR 2021, 2103.16257).

    Client i: local SGD from x^r on cross-entropy + mu l_con, with z(x; w) the representation and T the temperature,
        l_con = -log( e^{cos(z, z_g) / T} / (e^{cos(z, z_g) / T} + e^{cos(z, z_p) / T}) ),
    z_g = z(x; x^r), z_p = z(x; the client's own model after its last round, at first the run's initial one); both are constants, taken in
    evaluation mode. Sends its update. Server: x^{r+1} = x^r + sum_i (n_i / n) u_i.
    z is what the last linear layer is given: the paper's networks end in a projection of two layers before it, which is then part of
    `task.model`. `mu: 0` is FedAvg to the bit.
    Down: the model (P floats). Up: the update (P), n_i. Kept at client i: its last local model (P). At the server: the model.
    """

    class Settings(MethodSettings):
        mu: float = Field(1.0, ge=0, description="Weight of the contrastive loss; the paper's grid is 0.1 to 10.")
        temperature: float = Field(0.5, gt=0, description="T, what cosines are divided by.")

    wire: ClassVar[Wire] = OneModel.wire._replace(
        keep={"previous": Part(PARAMS, private=True, note="the last local model")}
    )

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "moon compares penultimate features")

    def splits_model(self) -> bool:
        return bool(self.settings.mu)

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"previous": task.initial}

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings

        def start(client: ClientContext) -> Tree:
            w = client.shared["model"]
            return {"model": w, "anchor": w, "previous": client.own["previous"]} if s.mu else {"model": w}

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            with task.training(batch, key):
                z = task.features(params, batch["x"])
            loss = task.cross_entropy(task.classify(task.classifier(params), z), batch["y"], key)
            there, before = (task.features(carry[of], batch["x"]) for of in ("anchor", "previous"))
            apart = contrast(z, there, before, s.temperature)
            return loss + s.mu * apart

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"delta": tree.sub(carry["model"], client.shared["model"])}, {"previous": carry["model"]}

        return sgd_visit(task.loss, self.local, start=start, end=end, objective=objective if s.mu else None)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"))
        return {"model": tree.add(state["model"], got.folded["delta"])}


def contrast(z: Tensor, near: Tensor, far: Tensor, temperature: float) -> Tensor:
    """Return l_con of each row, (B,), of representations (B, d): log(1 + e^{(cos(z, far) - cos(z, near)) / T})."""
    away, towards = (F.cosine_similarity(z, other.detach(), dim=-1) for other in (far, near))
    return F.softplus((away - towards) / temperature)
