"""FRAug: features made by a shared generator, and turned by a private network into the client's own kind, train the classifier too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import (
    ANY,
    CLASSES,
    PARAMS,
    Method,
    MethodSettings,
    Part,
    Visit,
    Wire,
    keys,
    mean,
    optimizers,
    sgd_visit,
    tree,
    visit,
)  # fmt: skip
from rayfed.distill import generator as gen
from rayfed.lazy import F, torch
from rayfed.methods._bases.prototypes import one_hot
from rayfed.task import needs_classes
from rayfed.training import clipped
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.partition import Federation
    from rayfed.visits import Batch


class FRAug(Method):
    """Chen et al. 2023, "FRAug: Tackling Federated Learning with Non-IID Features via Representation Augmentation" (ICCV 2023,
    2205.14900), equations as in the authors' code.

    z = f(x), h the last linear layer; G(e, y), e uniform, a generator of features that all share; T_k(v, s, y) = s + N_k(v, y), client k's
    own; mu_c its running mean of features of class c. In round t of R, q = exp(gamma (t - R)), w = min(most, q); on each batch (x, y):
        mu_c <- (1 - momentum) mu_c + momentum (mean of z over the batch's rows of c), for the classes in the batch;
        (f, h) on (1 - w) CE(h(z), y) + w L, L the mean of two: of CE(h(T(G(e, y'), mu_y', y')), y'), y' all classes in turn, and of
            CE(h(T(G(e, y), z, y)), y); made features are constants (`interpolate`: times q, plus 1 - q times mu_y' or z);
        G on CE(h(G(e, y')), y') - away dist(G(e, y'), mu_y'): away from what this client has;
        T on -H(softmax h(v)) + near dist(v, s) of both kinds of v, their mean.
    Server: (f, h) and G <- means weighted by examples. Served is the model; running statistics stay with their clients under
    `local.buffers: private`, as in the paper. `most: 0` is FedAvg to the bit.
    [ours]: dist is the mean of squares or absolute values per entry, without the code's MMD; G's and N's batch normalisation always takes
    the batch at hand, so they have no running statistics; classes that a client has not seen make no loss of the first kind (their mu
    is 0); e and y' are drawn anew for each of the three steps; optimizers start afresh in each round.
    Down: model (P floats), G. Up: their updates, n_k. Kept at client k: N_k, mu (C d), which classes it has seen. At the server: model
    and G.
    """

    no_privacy = "also trains generators, by formulas of its own"

    class Settings(MethodSettings):
        gamma: float = Field(0.02, ge=0, description="How late the made features come in: exp(gamma (t - R)).")
        most: float = Field(0.5, ge=0, le=1, description="Largest weight of made features; 0: FedAvg.")
        away: float = Field(1.0, ge=0, description="Weight of the generator's distance from the client's features.")
        near: float = Field(1.0, ge=0, description="Weight of the transformed features' distance to their references.")
        distance: Literal["l2", "l1"] = Field("l2", description="Mean of squares per entry, or of absolute values.")
        interpolate: bool = Field(False, description="Mix made features with what they are made for.")
        momentum: float = Field(0.3, gt=0, le=1, description="Weight of a batch in the running means of classes.")
        noise: int | None = Field(None, ge=1, description="Size of e and width of N; null: half of the features.")
        generator_lr: float = Field(0.02, gt=0, description="Local rate of G, the same in all rounds and steps.")
        transform_lr: float = Field(0.02, gt=0, description="Local rate of N, the same in all rounds and steps.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS), "generator": Part(ANY, note="G")},
        up={
            "delta": Part(PARAMS, update=True, robust=True),
            "moved": Part(ANY, update=True, note="the update of G"),
        },
        keep={
            "transform": Part(ANY, private=True, note="N_k"),
            "means": Part(tensor("C", "d"), private=True, note="mu"),
            "seen": Part(CLASSES, private=True, note="1 for each class that it has seen"),
        },
        server={"model": Part(PARAMS), "generator": Part(ANY, note="G")},
    )

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "fraug makes features of classes")

    def splits_model(self) -> bool:
        return True

    def reads_rounds(self) -> str | None:
        return "method.gamma" if self.settings.most else None

    def noise(self, task: Task) -> int:
        return self.settings.noise or max(1, task.feature_size // 2)

    def init(self, task: Task, key: int) -> Tree:
        d = task.feature_size
        g = network(keys.key(key, 0, -1, "generator"), self.noise(task), task, (d, d))
        return {"model": task.init_params(key), "generator": g}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        d = task.feature_size
        zeros = torch.zeros(task.classes, d, dtype=task.dtype)
        n = network(keys.key(key, 0, client, "transform"), d, task, (self.noise(task), d))
        return {"transform": n, "means": zeros, "seen": zeros[:, 0].clone()}

    @visit
    def train(self, task: Task) -> Visit:
        s, opt, clip = self.settings, optimizers.make(self.local.optimizer), self.local.clip
        plain = sgd_visit(task.loss, self.local, objective=self._objective(task) if s.most else None)
        (phase,) = plain.phases
        assert phase.enter is not None
        begin_steps = phase.enter

        def enter(client: ClientContext, carry: Tree) -> Tree:
            own, g, info = client.own, client.shared["generator"], client.info
            late = torch.exp(s.gamma * (info.round - info.rounds).to(task.dtype))
            return {
                **begin_steps(client, carry), **own, "generator": g, "opt_g": opt.init(g),
                "opt_t": opt.init(own["transform"]), "late": late, "at": info.round,
            }  # fmt: skip

        def slopes(loss: Any, at: Tree) -> Tree:
            found = torch.func.grad(loss)(at)
            return found if clip is None else clipped(found, clip)

        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            with task.training(batch, key):
                z = task.features(carry["model"], batch["x"])
            before = {**carry, **running(z, batch, carry["means"], carry["seen"], s.momentum)}
            after = phase.step(before, batch, key)
            of_g = slopes(lambda g: self._generator_loss(task, g, after, batch, keys.fold(key, 2)), carry["generator"])
            g, opt_g = opt.update(of_g, carry["opt_g"], carry["generator"], s.generator_lr)
            after = {**after, "generator": g, "opt_g": opt_g}
            of_t = slopes(lambda t: self._transform_loss(task, t, after, batch, keys.fold(key, 3)), carry["transform"])
            t, opt_t = opt.update(of_t, carry["opt_t"], carry["transform"], s.transform_lr)
            return {**after, "transform": t, "opt_t": opt_t, "at": carry["at"] + 1}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            own = {n: carry[n] for n in client.own} if s.most else client.own
            g = client.shared["generator"]
            moved = tree.sub(carry["generator"], g) if s.most else tree.zeros(g)
            return {"delta": tree.sub(carry["model"], client.shared["model"]), "moved": moved}, own

        steps = phase._replace(enter=enter, step=step) if s.most else phase
        return Visit(plain.begin, [steps], end, local=plain.local)

    def _made(self, task: Task, t: Tree, carry: Tree, batch: Batch, z: Tensor, key: Tensor) -> list[Any]:
        """Return (made features (B, d), what they were made for (B, d), labels (B,), weights (B,)) of both kinds."""
        n = len(batch["y"])
        turn = (torch.arange(n, device=z.device) + carry["at"] * n) % task.classes
        kinds = [(turn, carry["means"][turn], carry["seen"][turn]), (batch["y"], z, batch["w"].to(z.dtype))]
        out = []
        for i, (y, reference, w) in enumerate(kinds):
            e = keys.uniform(keys.fold(key, i), (n, self.noise(task)), task.dtype)
            v = forward(carry["generator"], labelled(e, y, task), torch.ones_like(w) if i == 0 else w)
            v = reference + forward(t, labelled(v, y, task), torch.ones_like(w) if i == 0 else w, last=False)
            out.append((v, reference, y, w))
        return out

    def _objective(self, task: Task) -> Any:
        s = self.settings

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            with task.training(batch, key):
                z = task.features(params, batch["x"])
            head, q = task.classifier(params), carry["late"]
            made = []
            for v, reference, y, w in self._made(task, carry["transform"], carry, batch, z.detach(), keys.fold(key, 1)):
                v = q * v + (1 - q) * reference if s.interpolate else v
                made.append(weighted(task.cross_entropy(task.classify(head, v.detach()), y), w))
            share = q.clamp(max=s.most)
            return (1 - share) * task.cross_entropy(task.classify(head, z), batch["y"], key) + share * (
                made[0] + made[1]
            ) / 2

        return objective

    def _generator_loss(self, task: Task, g: Tree, carry: Tree, batch: Batch, key: Tensor) -> Tensor:
        n = len(batch["y"])
        y = (torch.arange(n, device=batch["y"].device) + carry["at"] * n) % task.classes
        e = keys.uniform(key, (n, self.noise(task)), task.dtype)
        v = forward(g, labelled(e, y, task), torch.ones_like(e[:, 0]))
        told = task.cross_entropy(task.classify(task.classifier(carry["model"]), v), y).mean()
        return told - self.settings.away * weighted(self._gap(v, carry["means"][y]), carry["seen"][y])

    def _transform_loss(self, task: Task, t: Tree, carry: Tree, batch: Batch, key: Tensor) -> Tensor:
        z, head = task.features(carry["model"], batch["x"]), task.classifier(carry["model"])
        total = torch.zeros((), dtype=task.dtype, device=z.device)
        for v, reference, _, w in self._made(task, t, carry, batch, z, key):
            logp = torch.log_softmax(task.classify(head, v), -1)
            total = total + weighted((logp.exp() * logp).sum(-1) + self.settings.near * self._gap(v, reference), w) / 2
        return total

    def _gap(self, v: Tensor, to: Tensor) -> Tensor:
        return (v - to).square().mean(-1) if self.settings.distance == "l2" else (v - to).abs().mean(-1)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared=state, fold=(mean("delta"), mean("moved")))
        if not got.ids:
            return state
        return {
            "model": tree.add(state["model"], got.folded["delta"]),
            "generator": tree.add(state["generator"], got.folded["moved"]),
        }


def network(key: int, inputs: int, task: Task, sizes: tuple[int, ...]) -> Tree:
    """Return linear layers of (inputs + classes) -> sizes, each with a scale and a shift for what is normalised after it."""
    layers = gen.init(key, inputs, task.classes, sizes[-1:], sizes[:-1], task.dtype)
    ends = {n: {"scale": torch.ones_like(p["b"]), "shift": torch.zeros_like(p["b"])} for n, p in layers.items()}
    return {n: {**p, **ends[n]} for n, p in layers.items()}


def forward(net: Tree, x: Tensor, w: Tensor, last: bool = True) -> Tensor:
    """Return the network's answer (B, out): linear, normalised over the rows by weights w (B,), scaled, ReLU; last: ReLU at the end too."""
    w = (w / w.sum().clamp(min=1e-12))[:, None]
    for i, layer in enumerate(net.values()):
        x = F.linear(x, layer["w"], layer["b"])
        centre = (w * x).sum(0)
        spread = (w * (x - centre).square()).sum(0)
        x = (x - centre) / (spread + 1e-5).sqrt() * layer["scale"] + layer["shift"]
        x = torch.relu(x) if last or i < len(net) - 1 else x
    return x


def labelled(x: Tensor, y: Tensor, task: Task) -> Tensor:
    """Return rows (B, n) with their labels (B,) one-hot at the end."""
    return torch.cat([x, one_hot(y, task.classes, x.dtype)], 1)


def running(z: Tensor, batch: Batch, means: Tensor, seen: Tensor, momentum: float) -> Tree:
    """Return the running means (C, d) after a batch of features z (B, d), and the classes seen, (C,)."""
    of_class = one_hot(batch["y"], len(means), z.dtype) * batch["w"].to(z.dtype)[:, None]
    n = of_class.sum(0)
    found = (of_class.T @ z.detach()) / n.clamp(min=1)[:, None]
    here = n > 0
    return {
        "means": torch.where(here[:, None], (1 - momentum) * means + momentum * found, means),
        "seen": torch.where(here, torch.ones_like(seen), seen),
    }


def weighted(rows: Tensor, w: Tensor) -> Tensor:
    """Return the mean of rows (B,) with weights (B,), 0-d; 0 where all are 0."""
    return (rows * w).sum() / w.sum().clamp(min=1e-12)
