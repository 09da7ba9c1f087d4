"""FedMAC: rows that lack modalities are completed by learned embeddings and by what the others tell, under contrast against collapse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Need, Part, Wire, keys, mean, sgd_visit, total, tree, visit
from rayfed.lazy import F, torch
from rayfed.methods._bases.over_modalities import OverModalities, nothing
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.task.modalities import Modalities
    from rayfed.visits import Batch

TABLE = "fusion.absent"
FEWEST = 3  # rows of a batch that are contrasted: of fewer there are no negatives to speak of


class FedMAC(OverModalities):
    """FedMAC 2024, federated learning with partially missing modalities by cross-modal aggregation and contrastive regularisation (NCA
    2024, 2410.03070): a reconstruction, since its code cannot be had. From the abstract and the opening: an encoder that knows what is
    missing, shared imputation embeddings, cross-modal aggregation, two contrasts. From the first author's earlier code
    (nmduonggg/Local-Missing-FL) [code]: two rows of the table for each modality, and `contrast: sum`. The rest is [inferred].

    A row has modalities m with a_m = 1. The network (`task.model: {name: modalities, absent: refined}`): h_m = f_m(x_m) + E_m^1; r_m = G_m
    sum_j w_mj h_j over the others that are there; z_m = h_m or E_m^0 + r_m; u_m = softmax(s(z_m) - kappa (1 - a_m)); logits C sum_m u_m
    z_m.
    Client loss: CE + alpha L_rec + beta_inter L_inter + beta_intra L_intra, of each row
        L_rec   mean over present m, where another is present too, of mean((r_m - stop(h_m))^2) [inferred; a mean of the d squares, ours];
        L_inter mean over pairs of present modalities of InfoNCE(P z_m, P z_j): negatives are the batch's other rows that have j;
        L_intra InfoNCE of the fused row with itself less one present modality, at random: negatives are the batch's other rows;
        cosines over `tau`; a batch of fewer than 3 such rows makes no contrast.
    `contrast: sum` [code]: in their place `weight` times, over present m, -log s(u, v_m) / (s(u, v_m) + sum over rows of another label of
    s(u, v'_m)), and the same with u' against v_m, u the sum of the present encoders' answers, v_m that of one, s = exp(cosine).
    Server: means weighted by n_k; the table E^0 by owners: E_m^0 <- sum_k c_km E_km^0 / sum_k c_km, c_km the rows of client k without m, as
    before where the sum is 0 [inferred]; `table: mean` averages it as all else.
    Down: the model (P floats). Up: the update, M d floats, M counts, n_k. Kept at clients: nothing. At the server: the model.
    """

    class Settings(MethodSettings):
        alpha: float = Field(1.0, ge=0, description="Weight of the reconstruction of present modalities.")
        contrast: Literal["two", "sum"] = Field(
            "two", description="L_inter and L_intra, or the earlier code's one loss of sums."
        )
        beta_inter: float = Field(0.1, ge=0, description="Weight of L_inter.")
        beta_intra: float = Field(0.1, ge=0, description="Weight of L_intra.")
        tau: float = Field(0.3, gt=0, description="What cosines are divided by.")
        weight: float = Field(5.0, ge=0, description="Weight of the contrast of sums.")
        table: Literal["owners", "mean"] = Field(
            "owners", description="The table's means by rows that lack the modality, or by n_k."
        )

        needs: ClassVar = {
            **{n: (Need("contrast", ("two",)),) for n in ("beta_inter", "beta_intra", "tau")},
            "weight": (Need("contrast", ("sum",)),),
        }

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={
            "delta": Part(PARAMS, update=True),
            "table": Part(tensor("M", "d"), note="c_km times the change of E_m^0"),
            "missing": Part(tensor("M"), note="c_km"),
        },
        server={"model": Part(PARAMS)},
    )
    no_rule = "its table is averaged by the rows that lack a modality"
    no_privacy = "contrasts a batch's rows"

    def fits_model(self, task: Task) -> list[str]:
        if TABLE in task.params_like and "fusion.project.weight" in task.params_like:
            return []
        return [
            f"method.name: fedmac found, and task.model: {task.config.task.model.name} does not complete what is absent; allowed: "
            "{name: modalities, absent: refined}"
        ]

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "rows": nothing(task)}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            delta = tree.sub(carry["model"], client.shared["model"])
            missing = client.info.examples.to(task.dtype) - carry["rows"]
            return {"delta": delta, "table": missing[:, None] * delta[TABLE], "missing": missing}, client.own

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            return losses(task, self.settings, params, batch, key)

        return sgd_visit(task.loss, self.local, start=start, objective=objective, end=end, before=[self.counting(task)])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        folds = (mean("delta"), total("table"), total("missing"))
        got = fed.ask(self.train, fed.sample(), shared=state, fold=folds)
        if not got.ids:
            return state
        model = tree.add(state["model"], got.folded["delta"])
        if self.settings.table == "owners":
            moved = by_missing(got.folded["table"], got.folded["missing"])
            model = {**model, TABLE: state["model"][TABLE] + moved}
        return {"model": model}


def by_missing(total: Tensor, missing: Tensor) -> Tensor:
    """Return rows (M, d) summed by counts, over their counts (M,); 0 where nobody lacked the modality."""
    return torch.where((missing > 0)[:, None], total / missing.clamp(min=1)[:, None], 0.0)


def losses(task: Task, s: FedMAC.Settings, params: Tree, batch: Batch, key: Any) -> Tensor:
    """Return the client's loss of each row, (B,)."""
    of: Modalities = task  # type: ignore[assignment]
    there, w = of.there(batch["x"]) > 0, batch["w"]
    names = ["", "encoders", "fusion.refine", "fusion.parts", "fusion"]
    with task.training(batch, key):
        seen: dict[str, Any] = task.watch(params, batch["x"], names)
    loss = task.cross_entropy(seen[""], batch["y"], key)
    z = seen["fusion.parts"]
    if s.alpha:
        loss = loss + s.alpha * reconstruction(seen["fusion.refine"][0], z, there)
    if s.contrast == "sum":
        return loss + s.weight * of_sums(seen["encoders"], there, batch["y"], w)
    if s.beta_inter:
        loss = loss + s.beta_inter * between(F.linear(z, params["fusion.project.weight"]), there, w, s.tau)
    if s.beta_intra:
        gone, several = one_less(there, keys.fold(key, 1))
        with task.training(batch, key):
            other = task.watch(params, of.without(batch["x"], gone), ["fusion"])["fusion"]
        loss = loss + s.beta_intra * infonce(seen["fusion"], other, several, several & (w > 0), s.tau)
    return loss


def reconstruction(predicted: Tensor, z: Tensor, there: Tensor) -> Tensor:
    """Return L_rec of each row, (B,): predicted, z (B, M, d), there (B, M); 0 of rows with one modality."""
    gap = (predicted - z.detach()).square().mean(-1)
    several = there & (there.sum(1, keepdim=True) > 1)
    return torch.where(several, gap, 0.0).sum(1) / several.sum(1).clamp(min=1)


def infonce(a: Tensor, b: Tensor, rows: Tensor, among: Tensor, tau: float) -> Tensor:
    """Return -log softmax over `among` (B,) of cos(a_i, b_i') / tau at i' = i, (B,), 0 but on `rows` (B,), and 0 of fewer than 3 rows."""
    s = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / tau
    own = torch.eye(len(s), dtype=torch.bool, device=s.device)
    lost = torch.logsumexp(torch.where(among[None] | own, s, -1e30), 1) - s.diagonal()
    return torch.where(rows & among & (among.sum() >= FEWEST), lost, 0.0)


def between(p: Tensor, there: Tensor, w: Tensor, tau: float) -> Tensor:
    """Return L_inter of each row, (B,): projected parts p (B, M, d), there (B, M), w (B,)."""
    total, pairs = torch.zeros_like(w), torch.zeros_like(w)
    for m in range(p.shape[1]):
        for j in range(p.shape[1]):
            if m != j:
                rows = there[:, m] & there[:, j]
                total = total + infonce(p[:, m], p[:, j], rows, there[:, j] & (w > 0), tau)
                pairs = pairs + rows.to(w.dtype)
    return total / pairs.clamp(min=1)


def one_less(there: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return (which modality each row loses, (B, M) bool, of those that have two or more; which rows these are, (B,))."""
    u = torch.where(there, keys.uniform(key, tuple(there.shape)) + 1, 0.0)
    several = there.sum(1) > 1
    first = torch.arange(there.shape[1], device=u.device) == u.argmax(1, keepdim=True)
    return first & several[:, None], several


def of_sums(v: Tensor, there: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Return the earlier code's contrast of each row, (B,): v (B, M, d) what encoders answer, there (B, M), y, w (B,)."""
    u = F.normalize(torch.where(there[..., None], v, 0.0).sum(1), dim=-1)
    apart = ((y[:, None] != y[None]) & (w > 0)[None]).to(v.dtype)
    total = torch.zeros_like(w)
    for m in range(v.shape[1]):
        of_m = F.normalize(v[:, m], dim=-1)
        s = torch.exp(u @ of_m.T)  # s[i, j] = s(u_i, v_j)
        own, has = s.diagonal(), there[:, m].to(v.dtype)
        negatives = (s * apart * has[None]).sum(1), (s.T * apart).sum(1)
        total = total + has * sum(-torch.log(own / (own + n)) for n in negatives) / 2
    return total / there.sum(1).to(v.dtype).clamp(min=1)
