"""DPC: a second prompt learns base classes from hard negatives, beside a first one that stays for new classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import PARAMS, SCALAR, MethodSettings, Part, Visit, Wire, mean, model_of, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.over_prompts import OverPrompts, contrast, enlarged, hard_negatives, mixed, pool_phase
from rayfed.training import gradient

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Tree
    from rayfed.config.schema import Config
    from rayfed.visits import Batch


class DPC(OverPrompts):
    """Li et al. 2025, "DPC: Dual-Prompt Collaboration for Tuning Vision-Language Models" (CVPR 2025, 2503.13443), and the authors' code.

    Stage 1: P, learned tokens of a two-tower model, as the config trains them: cross-entropy on base classes, averaged by the server.
    Stage 2, P frozen: the client keeps M = w_b P' + (1 - w_b) P, from M = P, and learns it through P' = (M - (1 - w_b) P) / w_b, so that a
    step of rate eta on M moves P' by eta / w_b^2 times the gradient in P'. A batch of B rows gets negatives: of each row the K most
    probable base classes under P, but for the rows' own and those taken already; where fewer than two are left, others at random up to
    two; of each a random training picture of the client's. With v_i the picture's and t_i its label's features, S = s V T^T:
        L = (CE(S, diagonal) + CE(S^T, diagonal)) / 2.
    Served: M for base classes, w_n P' + (1 - w_n) P for new ones; with w_n = 0 that is P, to the bit.
    Two rows of one class are negatives of each other, as in the code; its random classes never are class 0, ours may be.
    With one client it is the paper's algorithm; that P is averaged over clients while P' stays with each is ours [inferred].
    Negatives are drawn from `pool` pictures of each class, drawn anew in every visit (ours).
    Down: P. Up: its change, in stage 1. Kept at client i: M, and whether it has trained. At the server: P.
    """

    class Settings(MethodSettings):
        stage_rounds: int = Field(10, ge=0, description="Rounds of stage 1; those after them are stage 2's.")
        w_base: float = Field(0.5, gt=0, le=1, description="Weight w_b of P' in what answers for base classes.")
        w_new: float = Field(0.0, ge=0, le=1, description="Weight w_n of P' in what answers for new classes.")
        k: int = Field(8, ge=1, description="Most probable classes of a row that may become negatives, K.")
        pool: int = Field(4, ge=1, description="Pictures of each class that a visit draws negatives from.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS, note="P")},
        up={"delta": Part(PARAMS, update=True, note="of P, in stage 1")},
        keep={"mixed": Part(PARAMS, private=True, note="M"), "trained": Part(SCALAR, private=True)},
        server={"model": Part(PARAMS, note="P")},
    )
    universal: ClassVar[str | None] = None
    no_privacy = "a row's loss is against the other rows of its batch"

    def check(self, config: Config) -> list[str]:
        out = super().check(config)
        if config.local.label_smoothing:
            out.append(
                f"local.label_smoothing: {config.local.label_smoothing:g} found, stage 2 of dpc compares with a batch's texts; allowed: 0"
            )
        return out

    def own_init(self, task: Any, client: int, key: int) -> Tree:
        return {"mixed": task.initial, "trained": torch.zeros((), dtype=task.dtype, device=task.device)}

    @visit
    def parallel(self, task: Any) -> Visit:
        """Run stage 2."""
        s = self.settings
        k = min(s.k, len(task.base))
        most = self.local.batch_size * max(k, 2)

        def start(client: ClientContext) -> Tree:
            return {"model": self._mixed(client), "p": client.shared["model"]}

        def slope(params: Tree, carry: Tree, batch: Batch, key: Tensor) -> tuple[Tree, Tree]:
            hardest = task.logits_of(carry["p"], batch["x"], task.base).topk(k, -1).indices
            chosen = hard_negatives(task.base[hardest], batch["y"], batch["w"], carry["there"], key)
            big = enlarged(batch, carry, chosen, most, key)

            def rows(m: Tree, big: Batch, key: Any) -> Tensor:
                own = recovered(m, carry["p"], s.w_base)
                with task.training(big, key):
                    v, t = task.image_features(own, big["x"]), task.class_features(own, big["y"])
                return contrast(v, t, task.scale, big["w"], symmetric=True)

            return gradient(rows, params, big, key), {}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {}, {"mixed": carry["model"], "trained": torch.ones_like(client.own["trained"])}

        made = sgd_visit(task.loss, self.local, start=start, grad=slope, end=end, before=[pool_phase(task, s.pool)])
        return made

    def round(self, state: Tree, fed: Fed, task: Any) -> Tree:
        if fed.round > self.settings.stage_rounds:
            fed.ask(self.parallel, fed.sample(), shared=state)
            return state
        got = fed.ask(self.train, fed.sample(), shared=state, fold=mean("delta"))
        return {"model": tree.add(state["model"], got.folded["delta"])}

    def view(self, task: Any) -> Visit:
        s = self.settings

        def model(client: ClientContext) -> Tree:
            p, m = client.shared["model"], self._mixed(client)
            return {"base": m, "new": mixed(recovered(m, p, s.w_base), p, s.w_new) if s.w_new else p}

        return model_of(model)

    @staticmethod
    def _mixed(client: ClientContext) -> Tree:
        """Return M of a client, P where it has none yet."""
        return tree.where(client.own["trained"] > 0, client.own["mixed"], client.shared["model"])


def recovered(m: Tree, p: Tree, w: float) -> Tree:
    """Return P' = (M - (1 - w) P) / w."""
    return tree.map(lambda a, b: (a - (1 - w) * b) / w, m, p)
