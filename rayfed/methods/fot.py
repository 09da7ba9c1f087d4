"""FOT: continual learning in which the server takes off each mean update what would change earlier tasks' activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import ANY, MethodSettings, Part, Visit, Wire, keys, mean, total, tree, visit
from rayfed.lazy import F, torch
from rayfed.methods._bases.one_model import OneModel
from rayfed.visits import Phase, once

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config


class FOT(OneModel):
    """Bakman et al. 2024, "Federated Orthogonal Training: Mitigating Global Catastrophic Forgetting in Continual Federated
    Learning" (ICLR, 2309.01289), after the authors' code.

    A layer l is protected with weight W_l (o, d), of a convolution (out, in * kh * kw), and its inputs as columns X (d, rows); O_l
    (d, r) is an orthonormal basis of the inputs of all finished tasks, empty at first.
    Clients: plain SGD on the present task. Server, each round, D_l the plain mean of the clients' updates of W_l:
        W_l <- W_l + D_l - D_l O_l O_l^T;   all else by the mean itself.
    At a task's end (`federation.stream`) the round's clients run their training rows through the new model and send for each
    protected layer S_k = R Omega, R = X - O O^T X, Omega (rows, d) uniform in (-1, 1), and rho_k = ||R||_F / ||X||_F, a ratio of
    norms. With S the sum of S_k, s its singular values, rho the mean of rho_k by rows, and the threshold
        eps' = (rho - (1 - eps)) / rho,
    the first r left singular vectors with sum_{i <= r} s_i^2 / sum s_i^2 > eps' join O_l, by QR: squares there, as in the code.
    `least` vectors are kept in any case (the code keeps one). eps grows by `eps_inc` with each task.
    Since D_l O_l = 0 from then on, layer l answers as before for inputs in the span of O_l. Biases, normalisation and, with
    `protect_head: false`, the last layer are not protected: of tasks with heads of their own these are the heads, which are not
    built here, so the one head is protected by default [inferred].
    Down: the model (P); at a task's end the bases (sum of d r). Up: update (P); at a task's end sum of d^2 + 1, and n_i.
    Kept at clients: nothing. At the server: the model, the bases. Until the first task's end it is FedAvg with equal weights,
    to the bit. Sketches tell the span of a client's inputs; their sum is all that the server reads.
    """

    class Settings(MethodSettings):
        eps: float = Field(
            0.95, gt=0, le=1, description="Share of the inputs' energy that bases hold; 1 keeps every direction."
        )
        eps_inc: float = Field(0.0, ge=0, description="What eps grows by with each task, up to 1.")
        least: int = Field(1, ge=0, description="Directions that each task adds at least, while there are any left.")
        protect_head: bool = Field(
            True, description="Whether the last layer is protected, too: of one head for all tasks."
        )

    no_privacy = "sends sketches of its rows without noise"
    wire: ClassVar[Wire] = Wire(
        down={**OneModel.wire.down, "bases": Part(ANY, note="O_l of each protected layer, at a task's end")},
        up={
            **OneModel.wire.up,
            "sketch": Part(ANY, note="S_k (d, d) of each protected layer, at a task's end"),
            "rho": Part(ANY, note="of each of them the share of the inputs' norm outside of O_l"),
        },
        server={**OneModel.wire.server, "bases": Part(ANY, note="O_l, (d, d) whose first r columns are in use")},
    )
    logs: ClassVar = {
        "bases/share": (
            "directions of the protected layers' inputs that bases hold, r / d, mean over layers",
            "fraction",
        )
    }

    def check(self, config: Config) -> list[str]:
        if config.federation.stream.kind != "none":
            return []
        return [
            "federation.stream.kind: none found, fot protects the earlier tasks of a stream; allowed: permuted, classes, drift"
        ]

    def fits_model(self, task: Task) -> list[str]:
        if self._protected(task):
            return []
        return [
            "method.name: fot found, task.model trains no whole linear or convolutional layer that it could protect"
        ]

    def _protected(self, task: Task) -> dict[str, Any]:
        """Return name -> module of the protected layers: linear ones and ungrouped convolutions of images whose weight is trained."""
        heads = () if self.settings.protect_head else task.head
        layers = {n.removesuffix(".weight"): n for n in task.params_like if n.endswith(".weight") and n not in heads}
        found = {n: task.layer(n) for n in layers}
        return {n: m for n, m in found.items() if isinstance(m, torch.nn.Linear) or (_is_conv(m) and m.groups == 1)}

    def init(self, task: Task, key: int) -> Tree:
        model = task.init_params(key)
        empty = {n: model[f"{n}.weight"].new_zeros(_width(model, n), _width(model, n)) for n in self._protected(task)}
        return {"model": model, "bases": empty}

    def cost(self, part: str, sent: Tree) -> int:
        """Return the bytes of a part; of bases those of the columns in use."""
        if part != "bases":
            return super().cost(part, sent)
        return sum(int((o != 0).any(-2).sum()) * o.shape[-1] * o.element_size() for o in sent.values())

    @visit
    def sketch(self, task: Task) -> Visit:
        """Send a random sketch of what each protected layer is given that its basis does not hold, and its share."""
        layers = self._protected(task)

        def begin(client: ClientContext) -> Tree:
            zero = torch.zeros((), dtype=task.dtype, device=task.device)
            model = client.shared["model"]
            wide = {
                n: torch.zeros(_width(model, n), _width(model, n), dtype=task.dtype, device=task.device) for n in layers
            }
            return {"sketch": wide, "left": dict.fromkeys(layers, zero), "all": dict.fromkeys(layers, zero)}

        def enter(client: ClientContext, carry: Tree) -> Tree:
            return {**carry, "model": client.shared["model"], "bases": client.shared["bases"]}

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            given = task.given(carry["model"], batch["x"], list(layers))
            made: Tree = {"sketch": {}, "left": {}, "all": {}}
            for i, (n, layer) in enumerate(layers.items()):
                x = inputs(layer, given[n]).to(task.dtype) * batch["w"][:, None, None]  # (B, positions, d)
                left = x - (x @ carry["bases"][n]) @ carry["bases"][n].T
                omega = 2 * keys.uniform(keys.fold(key, i), x.shape, task.dtype) - 1
                made["sketch"][n] = carry["sketch"][n] + torch.einsum("bpi,bpj->ij", left, omega)
                made["left"][n] = carry["left"][n] + left.square().sum()
                made["all"][n] = carry["all"][n] + x.square().sum()
            return {**carry, **made}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            rho = {n: (carry["left"][n] / carry["all"][n].clamp(min=1e-30)).sqrt() for n in layers}
            return {"sketch": carry["sketch"], "rho": rho}, client.own

        return Visit(begin, [Phase(once(), step, enter, counts=False)], end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight="one"))
        bases = state["bases"]
        model = tree.add(state["model"], projected(got.folded["delta"], bases))
        model = task.keep_averages(model, state["model"], got.folded["delta"])
        if fed.stage_ends and got.ids:
            bases = self._grown(bases, model, list(got.ids), fed)
        fed.log("bases/share", sum(rank(o) / len(o) for o in bases.values()) / len(bases))
        return {"model": model, "bases": bases}

    def _grown(self, bases: Tree, model: Tree, clients: list[int], fed: Fed) -> Tree:
        """Return the bases with the directions that the present task's inputs add."""
        s = self.settings
        folds = (total("sketch"), mean("rho"))
        got = fed.ask(self.sketch, clients, shared={"model": model, "bases": bases}, fold=folds)
        if not got.ids:
            return bases
        eps = min(1.0, s.eps + s.eps_inc * (fed.stage - 1))
        return {
            n: grown(o, got.folded["sketch"][n], float(got.folded["rho"][n]), eps, s.least) for n, o in bases.items()
        }


def rank(basis: Tensor) -> int:
    """Return how many columns of a basis (d, d) are in use: the first ones, the others being 0."""
    return int((basis != 0).any(0).sum())


def _is_conv(layer: Any) -> bool:
    return isinstance(layer, torch.nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _matrix(weight: Tensor) -> Tensor:
    return weight.reshape(len(weight), -1)


def _width(model: Tree, layer: str) -> int:
    return int(model[f"{layer}.weight"][0].numel())


def inputs(layer: Any, x: Tensor) -> Tensor:
    """Return what multiplies a layer's weight (o, d), of inputs x (B, ...): (B, positions, d); of a convolution its patches."""
    if _is_conv(layer):
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return patches.transpose(1, 2)
    return x.reshape(len(x), -1, x.shape[-1])


def projected(update: Tree, bases: Tree) -> Tree:
    """Return an update without what it does to inputs in the span of the bases: D - D O O^T of each protected weight."""
    out = dict(update)
    for n, o in bases.items():
        if rank(o):
            d = _matrix(update[f"{n}.weight"]).double()
            left = d - (d @ o.double()) @ o.double().T
            out[f"{n}.weight"] = left.reshape(update[f"{n}.weight"].shape).to(update[f"{n}.weight"].dtype)
    return out


def grown(basis: Tensor, sketch: Tensor, rho: float, eps: float, least: int) -> Tensor:
    """Return an orthonormal basis that holds `basis` and the first directions of a sketch; all are (d, d), of bases the first columns are
    in use.

    rho: share of the inputs' norm outside of `basis`; eps: share of their energy that is to be held; least: directions at least.
    """
    left, values, _ = torch.linalg.svd(sketch.double())
    there = int((values > values[:1].clamp(min=1e-300) * 1e-7 * len(values)).sum()) if bool(values.any()) else 0
    held = values.square().cumsum(0) / values.square().sum().clamp(min=1e-300)
    wanted = (rho - (1 - eps)) / max(rho, 1e-30)
    first = int((held <= wanted).sum()) + 1 if wanted > 0 else 0
    r = rank(basis)
    keep = min(max(first, least), there, len(basis) - r)
    if not keep:
        return basis
    made, _ = torch.linalg.qr(torch.cat([basis[:, :r].double(), left[:, :keep]], 1))
    return F.pad(made, (0, len(basis) - r - keep)).to(basis.dtype)
