"""FedLGD: clients train on small sets that they distil from their rows, and on a set that the server distils from what they learned."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import (
    ANY,
    CLASSES,
    PARAMS,
    SCALAR,
    Method,
    MethodSettings,
    Part,
    Phase,
    Visit,
    Wire,
    augment,
    keys,
    mean,
    sgd_visit,
    tensor,
    tree,
    visit,
)
from rayfed.lazy import F, torch
from rayfed.methods._bases.prototypes import one_hot
from rayfed.task import needs_classes
from rayfed.training import gradient
from rayfed.visits import nothing, once, steps

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.partition import Federation
    from rayfed.visits import Batch


class FedLGD(Method):
    """Huang et al. 2024, "Federated Learning on Virtual Heterogeneous Data with Local-global Distillation" (TMLR 2024, 2303.02278),
    equations as in the authors' code.

    S_k: client k's own made inputs, ipc of each class; S_g: the server's, server_ipc of each. e_w(x): what the last layer is given.
    Before its first round client k draws S_k from Normal(mean, deviation) of its rows' values by class and channel, and takes `warm_steps`
    steps down sum_c |mean e_w(A(x_c)) - mean e_w(A(S_k,c))|^2 on the pixels, w drawn anew in each step, A one draw of `local.augment` for
    both sides, x a batch of its rows. S_g is drawn from the mean of these statistics over the first round's clients.
    Round t from 0, a refresh where t is a multiple of `every`, at most `refreshes` times: with t > 0 clients distil S_k again,
    `refresh_steps` with the global model as w. Clients train on S_k and S_g, never on rows: cross-entropy, and in the other rounds plus
    lam R, R the supervised contrastive loss of the batch's features and those of all of S_g. Server: the plain mean of the models;
    in a refresh, with g = w_old - w_new, `server_steps` steps on the pixels of S_g down the sum of 1 - cos(row of grad CE(S_g; w_old),
    row of g) over rows (output units, filters) of all weights but biases and scales.
    [ours]: a step of matching sees one of the config's batches (paper: up to 256 rows a class), classes that it lacks left out; drawn
    networks have the deviations of the first model's weights; training batches are drawn anew in each step; rows of weights with g = 0 are
    left out; made inputs of classes that a client lacks have weight 0. `anchors: false` and lam 0 are the two controls.
    Down: model (P floats), S_g (C server_ipc inputs). Up: the update; once means and deviations (2 C channels). Kept at client k: S_k and
    which classes it has. At the server: model, S_g, who has distilled.
    """

    no_privacy = "train on inputs that they made of their rows, and of rows they send means and deviations of classes"
    no_buffers = "networks are drawn anew to distil with, and have no statistics"
    logs: ClassVar = {
        "fedlgd/before": (
            "mean of 1 - cos of the server's set against what clients learned, before its steps",
            "0 to 2",
        ),
        "fedlgd/after": ("the same after its steps", "0 to 2"),
    }

    class Settings(MethodSettings):
        ipc: int = Field(10, ge=1, description="Inputs of each class that a client makes.")
        server_ipc: int = Field(5, ge=1, description="Inputs of each class that the server makes.")
        anchors: bool = Field(True, description="Whether clients train on the server's set, too.")
        lam: float = Field(
            1.0, ge=0, description="Weight of the contrast with the server's set, in rounds without a refresh."
        )
        temperature: float = Field(0.07, gt=0, description="What the cosines of that contrast are divided by.")
        warm_steps: int = Field(
            300, ge=1, description="Steps of distillation before a client's first round (code: 10,000)."
        )
        refresh_steps: int = Field(50, ge=0, description="Steps of distillation with the global model (code: 100).")
        server_steps: int = Field(100, ge=0, description="The server's steps in a refresh (code: 500).")
        every: int = Field(5, ge=1, description="Rounds from one refresh to the next.")
        refreshes: int = Field(4, ge=0, description="Refreshes in all, that of round 1 among them (code: 10).")
        pixel_lr: float = Field(1.0, gt=0, description="Rate of steps on pixels.")
        pixel_momentum: float = Field(0.5, ge=0, lt=1, description="Momentum of steps on pixels.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS), "images": Part(ANY, note="S_g")},
        up={
            "delta": Part(PARAMS, update=True),
            "centre": Part(tensor("C", "d"), note="means of values by class and channel"),
            "spread": Part(tensor("C", "d"), note="their deviations"),
            "classes": Part(CLASSES, note="1 for each class that it has"),
        },
        keep={
            "images": Part(ANY, private=True, note="S_k"),
            "has": Part(CLASSES, private=True, note="1 for each class that it has"),
        },
        server={
            "model": Part(PARAMS),
            "images": Part(ANY, note="S_g"),
            "ready": Part(tensor("N"), note="1 for each client that has distilled"),
            "drawn": Part(SCALAR, note="whether S_g was drawn"),
        },
    )

    def fits(self, federation: Federation) -> list[str]:
        if federation.kind in ("text", "instruct"):
            return ["method.name: fedlgd makes inputs of numbers, and task.data holds texts"]
        return needs_classes(federation, "fedlgd distils inputs of classes")

    def splits_model(self) -> bool:
        return True

    def init(self, task: Task, key: int) -> Tree:
        images = torch.zeros(task.classes * self.settings.server_ipc, *task.input_shape, dtype=task.dtype)
        return {
            "model": task.init_params(key), "images": images,
            "ready": torch.zeros(task.population), "drawn": torch.zeros(()),
        }  # fmt: skip

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        images = torch.zeros(task.classes * self.settings.ipc, *task.input_shape, dtype=task.dtype)
        return {"images": images, "has": torch.zeros(task.classes, dtype=task.dtype)}

    @visit
    def distil(self, task: Task) -> Visit:
        """Draw the client's set from statistics of its rows, and distil it with networks drawn anew in each step."""
        like: Any = {"dtype": task.dtype, "device": task.device}
        d = channels(torch.zeros(1, *task.input_shape)).shape[1]

        def begin(client: ClientContext) -> Tree:
            zero, none = torch.zeros(task.classes, d, **like), torch.zeros(task.classes, **like)
            return {
                "centre": zero, "spread": zero, "rows": none, **client.own, "velocity": torch.zeros_like(client.own["images"])
            }  # fmt: skip

        def count(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            of_class = one_hot(batch["y"], task.classes, task.dtype) * batch["w"].to(task.dtype)[:, None]
            x = channels(batch["x"].to(task.dtype))
            return {
                **carry, "rows": carry["rows"] + of_class.sum(0), "centre": carry["centre"] + of_class.T @ x.mean(2),
                "spread": carry["spread"] + of_class.T @ x.square().mean(2),
            }  # fmt: skip

        def enter(client: ClientContext, carry: Tree) -> Tree:
            n = carry["rows"].clamp(min=1)[:, None]
            centre = carry["centre"] / n
            spread = (carry["spread"] / n - centre.square()).clamp(min=0).sqrt()
            own = keys.fold(client.info.secret, client.info.client)
            images = drawn(centre, spread, self.settings.ipc, task, own)
            has = (carry["rows"] > 0).to(task.dtype)
            return {**carry, "centre": centre, "spread": spread, "images": images, "has": has}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent = {"centre": carry["centre"], "spread": carry["spread"], "classes": carry["has"]}
            return sent, {n: carry[n] for n in client.own}

        step = self._matcher(task, lambda carry, key: fresh(task, key))
        counting = Phase(once(), count, counts=False)
        return Visit(begin, [counting, Phase(steps(self.settings.warm_steps), step, enter, counts=False)], end)

    @visit
    def refresh(self, task: Task) -> Visit:
        """Distil the client's set again, with the global model."""

        def begin(client: ClientContext) -> Tree:
            start = {**client.own, "velocity": torch.zeros_like(client.own["images"])}
            return {**start, "model": client.shared["model"]}

        step = self._matcher(task, lambda carry, key: carry["model"])
        phase = Phase(steps(self.settings.refresh_steps), step, counts=False)
        return Visit(begin, [phase], lambda client, carry: ({}, {n: carry[n] for n in client.own}))

    def _matcher(self, task: Task, network: Any) -> Any:
        """Return a step of the client's set towards its rows, by the features of network(carry, key)."""
        s, views = self.settings, augment.of(self.config)[0]
        labels = labels_of(task.classes, s.ipc)

        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            params, x = network(carry, keys.fold(key, 0)), batch["x"].to(task.dtype)
            of_class = one_hot(batch["y"], task.classes, task.dtype) * batch["w"].to(task.dtype)[:, None]
            n, at = of_class.sum(0), keys.fold(key, 1)
            real = of_class.T @ task.features(params, augment.alike(views, x, at)) / n.clamp(min=1)[:, None]

            def gap(images: Tensor) -> Tensor:
                own = one_hot(labels.to(images.device), task.classes, task.dtype).T / s.ipc
                made = own @ task.features(params, augment.alike(views, images, at))
                return ((real - made).square().sum(1) * (n > 0).to(task.dtype)).sum()

            velocity = s.pixel_momentum * carry["velocity"] + torch.func.grad(gap)(carry["images"])
            return {**carry, "velocity": velocity, "images": carry["images"] - s.pixel_lr * velocity}

        return step

    @visit
    def train(self, task: Task, contrast: bool = False) -> Visit:
        """Train on the client's set and the server's; contrast: with lam R."""
        s, local = self.settings, self.local
        labels, anchors = labels_of(task.classes, s.ipc), labels_of(task.classes, s.server_ipc)
        rows = len(labels) + (len(anchors) if s.anchors else 0)
        batch = min(rows, local.batch_size)
        number = local.steps or (local.epochs or 1) * math.ceil(rows / batch)

        def start(client: ClientContext) -> Tree:
            images, w = client.own["images"], client.own["has"][labels.to(task.device)]
            if s.anchors:
                images = torch.cat([images, client.shared["images"]])
                w = torch.cat([w, torch.ones(len(anchors), dtype=w.dtype, device=w.device)])
            return {"model": client.shared["model"], "x": images, "w": w}

        def formula(params: Tree, carry: Tree, _: Batch, key: Tensor) -> tuple[Tree, Tree]:
            y = (torch.cat([labels, anchors]) if s.anchors else labels).to(task.device)
            x, w = carry["x"], carry["w"]
            if batch < rows:
                at = torch.argsort(keys.uniform(keys.fold(key, 0), (rows,), torch.float32))[:batch]
                x, y, w = x[at], y[at], w[at]

            def loss(p: Tree, b: Batch, k: Tensor) -> Tensor:
                found = task.loss(p, b, k)
                if not contrast:
                    return found
                still, known = carry["x"][len(labels) :], anchors.to(task.device)
                h = task.features(p, torch.cat([b["x"], still]))
                weight = torch.cat([b["w"], torch.ones(len(known), dtype=w.dtype, device=w.device)])
                return found + s.lam * supervised_contrast(h, torch.cat([b["y"], known]), weight, s.temperature)

            return gradient(loss, params, {"x": x, "y": y, "w": w}, keys.fold(key, 1)), {}

        return sgd_visit(task.loss, local, start=start, grad=formula, phases=[(nothing(number), None)])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, ids, t = self.settings, fed.sample(), fed.round - 1
        state = self._distilled(state, fed, task, [c for c in ids if not bool(state["ready"][c])])
        ids = tuple(c for c in ids if bool(state["ready"][c]))  # whose distillation failed has nothing to train on
        refresh = t % s.every == 0 and t // s.every < s.refreshes
        if refresh and t and s.refresh_steps:
            fed.ask(self.refresh, ids, shared={"model": state["model"]})
        contrast = bool(s.anchors and s.lam and not refresh)
        shared = {n: state[n] for n in (("model", "images") if s.anchors else ("model",))}
        got = fed.ask(self.train.with_(contrast=contrast), ids, shared=shared, fold=mean("delta", weight="one"))
        if not got.ids:
            return state
        images = state["images"]
        if refresh and s.anchors and s.server_steps:
            images = self._matched(images, state["model"], tree.scale(got.folded["delta"], -1.0), fed, task)
        return {**state, "model": tree.add(state["model"], got.folded["delta"]), "images": images}

    def _distilled(self, state: Tree, fed: Fed, task: Task, new: list[int]) -> Tree:
        """Return the state after these clients have made their sets; the first ones give the server its own."""
        got = fed.ask(self.distil, new) if new else None
        if got is None or not got.ids:
            return state
        ready = state["ready"].clone()
        ready[torch.tensor(got.ids)] = 1
        state = {**state, "ready": ready}
        if not self.settings.anchors or bool(state["drawn"]):
            return state
        has = got.stacked("classes")
        n = has.sum(0).clamp(min=1)[:, None]
        centre, spread = ((has[:, :, None] * got.stacked(part)).sum(0) / n for part in ("centre", "spread"))
        key = torch.tensor(fed.key("server set"))
        images = drawn(centre, spread, self.settings.server_ipc, task, key).to(state["images"])
        return {**state, "images": images, "drawn": torch.ones(())}

    def _matched(self, images: Tensor, model: Tree, g: Tree, fed: Fed, task: Task) -> Tensor:
        """Return the server's set after its steps towards what clients learned, `g`; the model stays as it is."""
        s, labels = self.settings, labels_of(task.classes, self.settings.server_ipc)
        velocity = torch.zeros_like(images)
        both = torch.func.grad_and_value(lambda x: mismatch(task, model, x, labels, g))
        for t in range(s.server_steps):
            slope, value = both(images)
            if t == 0:
                fed.log("fedlgd/before", float(value) / matched_rows(g))
            velocity = s.pixel_momentum * velocity + slope
            images = (images - s.pixel_lr * velocity).detach()
        fed.log("fedlgd/after", float(mismatch(task, model, images, labels, g)) / matched_rows(g))
        return images


def labels_of(classes: int, each: int) -> Tensor:
    """Return so many labels of each class, class by class, (C each,)."""
    return torch.arange(classes).repeat_interleave(each)


def channels(x: Tensor) -> Tensor:
    """Return values (B, channels, n): of pictures by channel, of other rows each entry by itself."""
    return x.flatten(2) if x.dim() == 4 else x.flatten(1)[:, :, None]


def drawn(centre: Tensor, spread: Tensor, each: int, task: Task, key: Tensor) -> Tensor:
    """Return inputs (C each, *input_shape) from normal distributions by class and channel, (C, channels)."""
    e = channels(keys.normal(key, (task.classes * each, *task.input_shape), task.dtype))
    mean, deviation = (x.repeat_interleave(each, 0)[:, :, None] for x in (centre, spread))
    return (mean + deviation * e).reshape(-1, *task.input_shape)


def fresh(task: Task, key: Tensor) -> Tree:
    """Return a network whose weights are normal with the deviations of the run's first model; biases and scales are that one's."""
    return {
        n: keys.normal(keys.fold(key, i), p.shape, p.dtype) * p.std() if p.dim() >= 2 else p
        for i, (n, p) in enumerate(task.initial.items())
    }


def supervised_contrast(h: Tensor, y: Tensor, w: Tensor, temperature: float) -> Tensor:
    """Return the supervised contrastive loss of features (B, d), labels (B,) and weights (B,), 0-d: the mean over rows i of
    -mean over p with y_p = y_i of log(exp(z_i z_p / T) / sum_{a != i} exp(z_i z_a / T)), z of length 1 (Khosla et al. 2020)."""
    z = F.normalize(h, dim=1, eps=1e-6)
    others = (1 - torch.eye(len(h), dtype=h.dtype, device=h.device)) * w[None]
    s = z @ z.T / temperature
    logp = s - torch.logsumexp(torch.where(others > 0, s, s.new_full((), -1e9)), 1, keepdim=True)
    alike = (y[:, None] == y[None]).to(h.dtype) * others
    n = alike.sum(1)
    rows = -(alike * logp).sum(1) / n.clamp(min=1)
    counts = w * (n > 0).to(h.dtype)
    return (rows * counts).sum() / counts.sum().clamp(min=1)


def mismatch(task: Task, model: Tree, images: Tensor, labels: Tensor, g: Tree) -> Tensor:
    """Return the sum over rows of weights of 1 - cos(gradient of cross-entropy on the images, g), 0-d; rows with g = 0 left out."""
    batch = {"x": images, "y": labels, "w": torch.ones(len(labels), dtype=images.dtype)}
    slopes = torch.func.grad(lambda p: task.loss(p, batch).mean())(model)
    total = torch.zeros((), dtype=images.dtype)
    for n, wanted in g.items():
        if wanted.dim() >= 2:
            a, b = slopes[n].flatten(1), wanted.flatten(1)
            there = (b.square().sum(1) > 0).to(a.dtype)
            size = (a.square().sum(1) + 1e-24).sqrt() * (b.square().sum(1) + 1e-24).sqrt()
            total = total + (there * (1 - (a * b).sum(1) / size)).sum()
    return total


def matched_rows(g: Tree) -> int:
    """Return how many rows of weights `mismatch` sums over, at least 1."""
    return max(1, sum(int((x.flatten(1).square().sum(1) > 0).sum()) for x in g.values() if x.dim() >= 2))
