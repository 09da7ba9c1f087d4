"""FedE4RAG: clients keep their own retrieval encoder, which learns the global one's similarities beside its own pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, Method, MethodSettings, Part, Wire, mean, model_of, sgd_visit, tree, visit
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit


class FedE4RAG(Method):
    """Mao et al. 2025, Privacy-preserving federated embedding learning for localized retrieval-augmented generation (2504.19101), after the
    authors' code.

    Client k has an encoder f_k, at first the common one. A round: it is sent the global encoder f_g, which only teaches; on
    every batch a step on  contrast(S(f_k)) + `lam` mean_ij (S(f_k)_ij - S(f_g)_ij)^2,  S the cosines of the batch's questions and passages;
    f_k goes up, and is
    kept. Server: f_g <- the mean of all f_k that came, each counting once. `start: received` lets a client begin from f_g
    (ablation), with lam 0 it is then FedAvg of equal weights; with lam 0 and `own` clients train alone. The code has no temperature
    (task.kind.temperature 1), takes the mean over padded words too (here over words), and asks every client in every round.
    Down: f_g (P). Up: f_k, as its difference from f_g. Kept at clients: f_k, whether it was asked. At the server: f_g.
    """

    class Settings(MethodSettings):
        lam: float = Field(100.0, ge=0, description="Weight of the squared distance of cosines to the global model's.")
        start: Literal["own", "received"] = Field(
            "own", description="What local steps begin from: the client's own encoder, or the global one."
        )
        view: Literal["own", "shared"] = Field(
            "own", description="What a client is served: its own encoder, or the global one."
        )

    wire = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS, update=True, note="f_k - f_g")},
        keep={"model": Part(PARAMS, note="f_k"), "asked": Part(SCALAR)},
        server={"model": Part(PARAMS)},
    )
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    no_privacy = "compares the rows of a batch with one another"

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"model": task.initial, "asked": torch.zeros(())}

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings

        def start(client: ClientContext) -> Tree:
            first = client.own["model"] if s.start == "own" else client.shared["model"]
            return {"model": first, "teacher": client.shared["model"]}

        def objective(params: Tree, carry: Tree, batch: Any, key: Tensor) -> Tensor:
            mine = task.similarities(params, batch, key)  # type: ignore[attr-defined]
            apart = (mine - task.similarities(carry["teacher"], batch)) ** 2  # type: ignore[attr-defined]
            far = (apart * batch["w"]).sum(1) / batch["w"].sum().clamp(min=1)
            return task.contrast(mine, batch) + s.lam * far  # type: ignore[attr-defined]

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            own = {"model": carry["model"], "asked": torch.ones_like(client.own["asked"])}
            return {"delta": tree.sub(carry["model"], client.shared["model"])}, own

        return sgd_visit(task.loss, self.local, start=start, objective=objective if s.lam else None, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared=state, fold=mean("delta", weight="one"))
        model = tree.add(state["model"], got.folded["delta"])
        return {"model": task.keep_averages(model, state["model"], got.folded["delta"])}

    def view(self, task: Task) -> Visit:
        def chosen(client: ClientContext) -> Tree:
            shared: Tree = client.shared["model"]
            return (
                tree.where(client.own["asked"] > 0, client.own["model"], shared)
                if self.settings.view == "own"
                else shared
            )

        return model_of(chosen)
