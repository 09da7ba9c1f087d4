"""MADAug: a small network learns which augmentation each image gets, by what a step on augmented images does to validation rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from rayfed import (
    ANY,
    PARAMS,
    SCALAR,
    Method,
    MethodSettings,
    Need,
    Part,
    Phase,
    Visit,
    Wire,
    keys,
    mean,
    optimizers,
    sgd_visit,
    tree,
    visit,
)
from rayfed.augment._operations import OPERATIONS
from rayfed.distill import generator
from rayfed.lazy import F, torch
from rayfed.task import needs_classes
from rayfed.visits import steps

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.visits import Batch

Name = Literal["identity", "translate", "rotate", "contrast", "brightness", "cutout"]


class MADAug(Method):
    """Hou et al. 2023, "When to Learn What: Model-Adaptive Data Augmentation Curriculum" (ICCV 2023, 2309.04747), equations as in the
    authors' code; the paper is not federated.

    f features, g the last layer, h a linear layer of f(x) to 2 K numbers: magnitudes m = sigmoid of K of them, chances p = softmax of the
    others over T, K operations A_k. Task steps: of a batch's n rows the first floor(s n) are augmented, s = min(most, tanh(e / tau) +
    floor), e rounds done; each gets `per_image` operations drawn by p without replacement, one after another, m moved by up to delta.
    Policy steps, from round `from_round` on: x~ = sum_k p_k (A_k(x; m_k) + m_k - [m_k]), [.] constant (straight through); theta' = theta
    - lr grad CE(g(f(x~)), y); Adam on h by the gradient of CE of theta' on validation rows; theta' is thrown away.
    One client with `policy_steps` before each epoch is the paper's algorithm but for their place (code: one every few batches); the inner
    step is plain SGD. With several [ours] the server averages h as the model, or each keeps its own (`scope: private`).
    Controls: `policy: random` draws operations and magnitudes evenly, `strong` has magnitude 1; `most: 0` is training without
    augmentation, to the bit.
    Down: model (P floats), h. Up: update, update of h, its mean magnitude. Kept at client: h, read under `scope: private`. At the server:
    model, h.
    """

    no_privacy = "learn a policy by steps of their own, which have no noise"
    logs: ClassVar = {
        "madaug/magnitude": ("mean magnitude of operations by their chances, in clients' last policy steps", "0 to 1")
    }

    class Settings(MethodSettings):
        operations: tuple[Name, ...] = Field(get_args(Name), min_length=1, description="What an image can get.")
        per_image: int = Field(1, ge=1, description="Operations of an image, at most as many as there are.")
        policy: Literal["learned", "random", "strong"] = Field(
            "learned", description="Who chooses; the others are controls."
        )
        scope: Literal["average", "private"] = Field(
            "average", description="Whether clients share h, or each has its own."
        )
        most: float = Field(1.0, ge=0, le=1, description="Largest share of augmented rows; 0: none.")
        tau: float = Field(5.0, gt=0, description="Rounds in which the share rises to 0.76.")
        floor: float = Field(0.01, ge=0, le=1, description="Share in round 1.")
        delta: float = Field(0.3, ge=0, le=1, description="How far a magnitude moves at random.")
        temperature: float = Field(3.0, gt=0, description="T of the chances.")
        policy_steps: int = Field(2, ge=1, description="Steps of h in each visit.")
        policy_lr: float = Field(1e-3, gt=0, description="Adam's rate for h.")
        from_round: int = Field(2, ge=1, description="First round with policy steps.")

        needs: ClassVar = dict.fromkeys(
            ("scope", "delta", "temperature", "policy_steps", "policy_lr", "from_round"),
            (Need("policy", ("learned",)),),
        )

        @field_validator("operations", mode="before")
        @classmethod
        def _one(cls, v: Any) -> Any:
            return (v,) if isinstance(v, str) else v

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS), "policy": Part(ANY, note="h")},
        up={
            "delta": Part(PARAMS, update=True, robust=True),
            "moved": Part(ANY, update=True, note="the update of h"),
            "magnitude": Part(SCALAR, note="mean magnitude"),
        },
        keep={"policy": Part(ANY, private=True, note="its own h")},
        server={"model": Part(PARAMS), "policy": Part(ANY, note="h")},
    )

    def check(self, config: Config) -> list[str]:
        s, found = self.settings, []
        if s.policy == "learned" and not config.federation.split.val:
            found.append(
                f"federation.split.val: {config.federation.split.val} found, madaug learns by validation rows; allowed: a share above 0"
            )
        if s.per_image > len(s.operations):
            found.append(
                f"method.per_image: {s.per_image} found, allowed: at most the {len(s.operations)} of method.operations"
            )
        return found

    def fits(self, federation: Federation) -> list[str]:
        if federation.kind != "image":
            return [f"method.name: madaug augments images, task.data holds {federation.kind} data"]
        return needs_classes(federation, "madaug learns by cross-entropy")

    def splits_model(self) -> bool:
        return True

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), "policy": self._first(task)}

    def _first(self, task: Task) -> Tree:
        key, many = keys.key(self.config.seed, 0, -1, "policy"), 2 * len(self.settings.operations)
        return generator.init(key, task.feature_size, 0, (many,), (), task.dtype)["0"]

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"policy": self._first(task)}

    @visit
    def train(self, task: Task) -> Visit:
        s, adam, rows = self.settings, optimizers.adam(), self.local.batch_size
        learned = s.policy == "learned"
        like: Any = {"dtype": task.dtype, "device": task.device}

        def start(client: ClientContext) -> Tree:
            h = client.own["policy"] if s.scope == "private" else client.shared["policy"]
            done = (client.info.round - 1).to(task.dtype)
            share = (torch.tanh(done / s.tau) + s.floor).clamp(max=s.most)
            carry = {"model": client.shared["model"], "policy": h, "share": share}
            if not learned:
                return carry
            val = {
                "x": torch.zeros(rows, *task.input_shape, **like), "w": torch.zeros(rows, **like),
                "y": torch.zeros(rows, dtype=torch.int64, device=task.device),
            }  # fmt: skip
            on = (client.info.round >= s.from_round).to(task.dtype)
            more = {
                "val": val,
                "adam": adam.init(h),
                "magnitude": torch.zeros((), **like),
                "on": on,
                "rate": client.info.lr,
            }
            return {**carry, **more}

        def take(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            val = {"x": batch["x"].to(task.dtype), "y": batch["y"].long(), "w": batch["w"].to(task.dtype)}
            return {**carry, "val": val}

        def learn(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            slopes, size = torch.func.grad(lambda h: self.validated(task, h, carry, batch, key), has_aux=True)(
                carry["policy"]
            )
            h, state = adam.update(slopes, carry["adam"], carry["policy"], s.policy_lr)
            on = carry["on"] > 0
            return {
                **carry, "policy": tree.where(on, h, carry["policy"]), "adam": tree.where(on, state, carry["adam"]), "magnitude": size
            }  # fmt: skip

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            out = {"delta": tree.sub(carry["model"], client.shared["model"])}
            if learned:
                out["magnitude"] = carry["magnitude"]
                if s.scope == "average":
                    out["moved"] = tree.sub(carry["policy"], client.shared["policy"])
            return out, {"policy": carry["policy"]}

        before = [Phase(steps(1, "val"), take, counts=False), Phase(steps(s.policy_steps), learn, counts=False)]
        return sgd_visit(
            task.loss,
            self.local,
            start=start,
            end=end,
            before=before if learned else (),
            objective=self._objective(task),
        )

    def read(self, task: Task, h: Tree, model: Tree, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return magnitudes and chances (B, K) that a policy gives images (B, C, H, W), by a model's features."""
        k = len(self.settings.operations)
        out = F.linear(task.features(model, x), h["w"], h["b"])
        return torch.sigmoid(out[:, :k]), torch.softmax(out[:, k:] / self.settings.temperature, -1)

    def changed(self, x: Tensor, m: Tensor, key: Tensor) -> Tensor:
        """Return what each operation makes of images (B, C, H, W) at magnitudes (B, K), (K, B, C, H, W)."""
        out, rows = [], torch.arange(len(x), device=x.device)
        for k, name in enumerate(self.settings.operations):
            out.append(torch.vmap(OPERATIONS[name])(x, m[:, k], keys.fold(keys.fold(key, k), rows)))
        return torch.stack(out)

    def validated(self, task: Task, h: Tree, carry: Tree, batch: Batch, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return (the validation loss after one step on what a policy mixes of a batch, the policy's mean magnitude), 0-d."""
        x, model, val = batch["x"].to(task.dtype), carry["model"], carry["val"]
        m, p = self.read(task, h, model, x)
        images = straight_through(self.changed(x, m.detach(), key), m)
        mixed = (p.T[:, :, None, None, None] * images).sum(0)

        def loss(params: Tree, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
            return (task.cross_entropy(task.apply(params, x), y) * w).sum() / w.sum().clamp(min=1)

        moves = tree.without(model, task.buffers)  # running statistics have no gradient in a step of training
        slope = torch.func.grad(lambda p: loss({**model, **p}, mixed, batch["y"], batch["w"].to(task.dtype)))(moves)
        after = {**model, **tree.add(moves, slope, -carry["rate"])}
        size = ((p * m).sum(1) * batch["w"]).sum() / batch["w"].sum().clamp(min=1)
        return loss(after, val["x"], val["y"], val["w"]), size

    def _objective(self, task: Task) -> Any:
        s = self.settings
        many = len(s.operations)

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            x, w = batch["x"], batch["w"]
            rows = torch.arange(len(x), device=x.device)
            now = (rows < torch.floor(carry["share"] * w.sum()))[:, None, None, None]
            made, own = x.to(task.dtype), keys.fold(key, 1)
            u = keys.uniform(keys.fold(own, 0), (2, len(x), many), torch.float32).to(task.dtype)
            if s.policy == "learned":
                m, p = self.read(task, carry["policy"], carry["model"], made)
                m = (m + s.delta * (2 * u[0] - 1)).clamp(0, 1)
            else:
                m, p = u[0] if s.policy == "random" else torch.ones_like(u[0]), torch.full_like(u[0], 1 / many)
            noise = -torch.log(-torch.log(u[1].clamp(1e-7, 1 - 1e-7)))
            order = torch.argsort(
                torch.argsort(-(torch.log(p.clamp(min=1e-12)) + noise), 1), 1
            )  # (B, K), 0 is drawn first
            for i in range(s.per_image):
                here = (order == i).to(task.dtype).T[:, :, None, None, None]
                made = (here * self.changed(made, m, keys.fold(own, 1 + i))).sum(0)
            return task.loss(params, {**batch, "x": torch.where(now, made.detach().to(x.dtype), x)}, key)

        return objective

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        shares = s.policy == "learned" and s.scope == "average"
        parts = ["delta", *(["moved"] if shares else []), *(["magnitude"] if s.policy == "learned" else [])]
        got = fed.ask(self.train, fed.sample(), shared=state, fold=tuple(map(mean, parts)))
        if not got.ids:
            return state
        if s.policy == "learned":
            fed.log("madaug/magnitude", float(got.folded["magnitude"]))
        policy = tree.add(state["policy"], got.folded["moved"]) if shares else state["policy"]
        model = tree.add(state["model"], got.folded["delta"])
        return {"model": model, "policy": policy}


def straight_through(images: Tensor, m: Tensor) -> Tensor:
    """Return images (K, B, C, H, W) as they are, whose gradient by their magnitudes (B, K) is 1 in each pixel."""
    return images + (m - m.detach()).T[:, :, None, None, None]
