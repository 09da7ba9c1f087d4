"""GIFD: an audit that reconstructs clients' pictures from their gradients, in one's own simulated federation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import (
    ANY,
    PARAMS,
    SCALAR,
    Method,
    MethodSettings,
    Part,
    Phase,
    Visit,
    Wire,
    keys,
    optimizers,
    tensor,
    tree,
    visit,
)
from rayfed.distill import generator
from rayfed.lazy import F, torch
from rayfed.task import needs_classes
from rayfed.training import clipped, gradient
from rayfed.visits import steps

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation

Shown = Callable[
    [Any], Any
]  # of tensors: rows of what is searched -> rows of flat pictures, or put back where they may be
HIDDEN = (64, 128, 128)  # units of the generator's blocks, between the latent code and the picture


class GIFD(Method):
    """Fang et al. 2023, "GIFD: A Generative Gradient Inversion Method with Feature Domain Optimization", ICCV (2308.04699), as an audit: it
    trains no model. The server has the run's first model w (or `init.from`) and what each client sends: g*, the gradient of one picture.

    Round 1: a decoder G of four layers is trained on public inputs, as an autoencoder with codes z on a sphere. Each round, for each
    client asked: label y: the most negative row sum of g*'s last weight matrix. With L(x) = 1 - cos(grad_w CE(f_w(x), y), g*) + tv
    TV(x) + size |x|^2 / side^2: stage 0: Adam on z, put back on its sphere after each step; stage k = 1, 2, 3: Adam on h_k, the
    output of G's k-th layer, from where the stage before ended, its deviation put back into an l1 ball of radius k `radius`
    numel(h_k). Of all stages and `restarts` the picture whose cosine term alone is least. `search: latent` is stage 0 alone, `pixels`
    the same on x itself, without G.
    Transforms are the defences; the search does not know of them. Central noise and masks are refused by what it is: it reads single
    gradients. A search that fails says nothing of another attack.
    Down: the model (P). Up: g* (P), and beside the wire the true picture and label, by which it is scored and which the search does not
    see. Kept at clients: nothing. At the server: the model, G.
    """

    logs: ClassVar = {
        "gifd/psnr": ("peak signal to noise of reconstructed pictures, mean over clients", "dB"),
        "gifd/match": ("1 - cosine between the gradients of reconstruction and client, mean", "0 = equal"),
        "gifd/labels": ("labels that were inferred rightly", "fraction"),
        "gifd/found": ("reconstructions that are nearest to their own client's picture, of the round's", "fraction"),
    }

    class Settings(MethodSettings):
        search: Literal["gifd", "latent", "pixels"] = Field(
            "gifd", description="What is searched: features, the latent code, or pixels."
        )
        steps: int = Field(200, ge=1, description="Steps of Adam in each stage.")
        lr: float = Field(
            0.05, gt=0, description="Its largest rate; it warms up over 5 % and falls over the last 75 % of a stage."
        )
        restarts: int = Field(2, ge=1, description="Starts of the search.")
        radius: float = Field(0.1, ge=0, description="Radius of stage 1's l1 ball over the number of features.")
        tv: float = Field(1e-4, ge=0, description="Weight of total variation, of pictures.")
        size: float = Field(1e-6, ge=0, description="Weight of the squared norm.")
        latent: int = Field(16, ge=1, description="Numbers of the latent code z.")
        generator_steps: int = Field(2000, ge=1, description="Steps of Adam that the generator is trained for.")

    no_rule = "it reads single gradients, and averages none"
    no_privacy = "sends a gradient by a formula of its own; use transforms as the defence"
    no_buffers = "a gradient of one row has no batch statistics"
    needs = frozenset({"classes"})
    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={
            "gradient": Part(PARAMS, update=True, note="g*"),
            "truth": Part(ANY, note="the picture, for the score; nothing in a deployment"),
            "label": Part(tensor(dtype="int64"), note="the same"),
        },
        server={"model": Part(PARAMS), "generator": Part(ANY), "made": Part(SCALAR, note="0 or 1")},
    )

    def check(self, config: Config) -> list[str]:
        if config.federation.public_rows:
            return []
        return ["federation.probe: 0 found, gifd trains its generator on public inputs; allowed: a whole number >= 1"]

    def fits(self, federation: Federation) -> list[str]:
        if federation.kind in ("text", "instruct"):
            return ["method.name: gifd reconstructs numbers, and task.data holds texts"]
        return needs_classes(federation, "gifd infers labels from a classifier's last layer")

    def splits_model(self) -> bool:
        return True

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part in ("truth", "label") else super().cost(part, sent)

    def init(self, task: Task, key: int) -> Tree:
        made = generator.init(key, self.settings.latent, 0, task.input_shape, HIDDEN, task.dtype)
        return {"model": task.init_params(key), "generator": made, "made": torch.zeros(())}

    @visit
    def leak(self, task: Task) -> Visit:
        """Send the gradient of one training picture, the first of a batch, as a step of training would take it."""

        def begin(client: ClientContext) -> Tree:
            zero = torch.zeros(task.input_shape, dtype=task.dtype, device=task.device)
            label = torch.zeros((), dtype=torch.int64, device=task.device)
            return {
                "model": client.shared["model"],
                "gradient": tree.zeros(client.shared["model"]),
                "truth": zero,
                "label": label,
            }

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            one = {n: x[:1] for n, x in batch.items()}
            g = gradient(task.loss, carry["model"], one, key)
            if self.local.clip is not None:
                g = clipped(g, self.local.clip)
            return {**carry, "gradient": g, "truth": one["x"][0].to(task.dtype), "label": one["y"][0].to(torch.int64)}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {n: carry[n] for n in ("gradient", "truth", "label")}, client.own

        return Visit(begin, [Phase(steps(1), step, counts=False)], end, local=lambda carry: carry["model"])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        public = fed.probe().to(task.dtype)
        low, high = float(public.min()), float(public.max())
        if not bool(state["made"]) and self.settings.search != "pixels":
            made = self.train_generator(
                state["generator"], (public - low) / max(high - low, 1e-12), fed.key("generator")
            )
            state = {**state, "generator": made, "made": torch.ones(())}
        got = fed.ask(self.leak, fed.sample(), shared={"model": state["model"]})
        if not got.ids:
            return state
        g, truth, labels = (got.stacked(n) for n in ("gradient", "truth", "label"))
        inferred = infer(task, g)
        pictures, match = self.invert(task, state, g, inferred, (low, high), fed.key("search"))
        apart = (pictures.flatten(1)[:, None] - truth.flatten(1)[None]).square().mean(2)
        error = apart.diagonal().clamp(min=1e-12)
        fed.log("gifd/psnr", float((10 * torch.log10((high - low) ** 2 / error)).mean()))
        fed.log("gifd/match", float(match.mean()))
        fed.log("gifd/labels", float((inferred == labels).double().mean()))
        fed.log("gifd/found", float((apart.argmin(1) == torch.arange(len(apart))).double().mean()))
        return state

    def train_generator(self, decoder: Tree, x: Tensor, key: int) -> Tree:
        """Return a decoder trained with an encoder of its own on inputs (n, ...) in [0, 1]: mean squared error, batches of 64."""
        s, flat = self.settings, x.flatten(1)
        encoder = generator.init(key, flat.shape[1], 0, (s.latent,), HIDDEN[::-1], x.dtype)
        both: Tree = {"decoder": decoder, "encoder": encoder}
        adam, rng = optimizers.adam(), keys.torch_generator(key)
        none = torch.zeros(min(64, len(x)), dtype=torch.int64)

        def loss(nets: Tree, rows: Tensor) -> Tensor:
            z = sphere(generator.latent(nets["encoder"], rows, none, 0))
            return (picture(nets["decoder"], 0, z) - rows).square().mean()

        moments = adam.init(both)
        for t in range(s.generator_steps):
            rows = flat[torch.randint(len(flat), (len(none),), generator=rng)]
            rate = 3e-3 * (1 + math.cos(math.pi * t / s.generator_steps)) / 2
            both, moments = adam.update(torch.func.grad(loss)(both, rows), moments, both, rate)
        return tree.detach(both["decoder"])

    def invert(
        self, task: Task, state: Tree, g: Tree, y: Tensor, bounds: tuple[float, float], key: int
    ) -> tuple[Tensor, Tensor]:
        """Return the pictures (n, *input_shape) found for gradients, leaves (n, ...), and labels (n,), and their cosine terms (n,)."""
        s, (low, high) = self.settings, bounds
        target = torch.cat([x.flatten(1) for x in tree.values(g)], 1).repeat(s.restarts, 1)
        labels = y.repeat(s.restarts)

        def shown(flat: Tensor) -> Tensor:
            return (low + (high - low) * flat).reshape(*flat.shape[:-1], *task.input_shape)

        def match(flat: Tensor, wanted: Tensor, label: Tensor) -> Tensor:
            return mismatch(task, state["model"], shown(flat), label, wanted)

        def value(of: Shown) -> Callable[..., Tensor]:
            def loss(v: Tensor, wanted: Tensor, label: Tensor) -> Tensor:
                flat = of(v)
                x = shown(flat)
                return match(flat, wanted, label) + s.tv * variation(x) + s.size * x.square().sum() / max(1, x.numel())

            return loss

        def search(of: Shown, start: Tensor, back: Shown) -> Tensor:
            return descend(value(of), start, (target, labels), s.steps, s.lr, back)

        found = list(
            self._stages(state["generator"], len(labels), math.prod(task.input_shape), task.dtype, key, search)
        )
        apart = torch.stack([torch.vmap(match)(flat, target, labels) for flat in found])  # (stages, restarts x n)
        least = apart.reshape(-1, len(y)).min(0)
        flat = torch.stack(found).reshape(-1, len(y), found[0].shape[1])
        return shown(flat[least.indices, torch.arange(len(y))]), least.values

    def _stages(
        self,
        decoder: Tree,
        rows: int,
        numbers: int,
        dtype: Any,
        key: int,
        search: Callable[[Shown, Tensor, Shown], Tensor],
    ) -> Iterator[Tensor]:
        """Yield the flat pictures (rows, numbers) in [0, 1] that each stage of the search ends with."""
        s, at = self.settings, torch.tensor(key)
        if s.search == "pixels":
            start = (0.5 + 0.1 * keys.normal(at, (rows, numbers), dtype)).clamp(0, 1)
            yield search(lambda v: v, start, lambda v: v.clamp(0, 1))
            return
        v = search(partial(picture, decoder, 0), sphere(keys.normal(at, (rows, s.latent), dtype)), sphere)
        yield picture(decoder, 0, v)
        for k in range(1, len(decoder)) if s.search == "gifd" else ():
            v = layer(decoder, k - 1, v)
            v = search(partial(picture, decoder, k), v, partial(within, v, k * s.radius * v.shape[1]))
            yield picture(decoder, k, v)


def infer(task: Task, g: Tree) -> Tensor:
    """Return the label (n,) of each gradient of one row: the most negative row sum of the last weight matrix."""
    (name,) = [n for n in task.classifier_names if n.endswith("weight")]
    return g[name].sum(2).argmin(1)


def mismatch(task: Task, model: Tree, x: Tensor, y: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 - cos between the gradient of the loss at one input x and a flat gradient (P,); 0-d."""
    batch = {"x": x[None], "y": y[None], "w": torch.ones(1, dtype=x.dtype)}
    found = torch.func.grad(lambda p: task.loss(p, batch)[0])(model)
    flat = torch.cat([v.flatten() for v in tree.values(found)])
    return 1 - (flat @ wanted) / (flat.norm() * wanted.norm()).clamp(min=1e-12)


def variation(x: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours along the last two axes of a picture; 0 of a vector."""
    if x.dim() < 2:
        return torch.zeros((), dtype=x.dtype)
    return (x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()) / 2


def descend(
    value: Callable[..., Tensor], start: Tensor, more: tuple[Tensor, ...], number: int, lr: float, back: Shown
) -> Tensor:
    """Return each row of `start` after so many steps of Adam on value(row, its rows of `more`), put `back` after each."""
    adam, slope = optimizers.adam(), torch.vmap(torch.func.grad(value))
    v, state = start, adam.init({"v": start})
    for t in range(number):
        share = (t + 1) / number
        rate = lr * min(1.0, share / 0.05) * min(1.0, (1 + math.cos(math.pi * max(0.0, (share - 0.25) / 0.75))) / 2)
        after, state = adam.update({"v": slope(v, *more)}, state, {"v": v}, rate)
        v = back(after["v"]).detach()
    return v


def layer(decoder: Tree, k: int, h: Tensor) -> Tensor:
    """Return the output of the decoder's layer k, of k + 1 = 1 .. n - 1, for h (..., d)."""
    return F.relu(F.linear(h, decoder[str(k)]["w"], decoder[str(k)]["b"]))


def picture(decoder: Tree, k: int, h: Tensor) -> Tensor:
    """Return flat pictures in [0, 1] of what layer k is given: k = 0 is the latent code."""
    last = len(decoder) - 1
    for i in range(k, last):
        h = layer(decoder, i, h)
    return torch.sigmoid(F.linear(h, decoder[str(last)]["w"], decoder[str(last)]["b"]))


def sphere(z: Tensor) -> Tensor:
    """Return rows scaled to the norm sqrt(d)."""
    return z * (math.sqrt(z.shape[-1]) / z.norm(dim=-1, keepdim=True).clamp(min=1e-12))


def within(middle: Tensor, radius: float, h: Tensor) -> Tensor:
    """Return the nearest rows to h whose distance from `middle`, in the l1 norm, is at most `radius`."""
    return middle + onto_l1(h - middle, radius)


def onto_l1(d: Tensor, radius: float) -> Tensor:
    """Return the nearest rows (n, d) whose l1 norm is at most `radius` (Duchi et al. 2008, "Efficient Projections onto the l1-Ball")."""
    size = d.abs()
    ordered = size.sort(1, descending=True).values
    over = (ordered.cumsum(1) - radius) / torch.arange(1, d.shape[1] + 1, dtype=d.dtype)
    last = (ordered > over).sum(1, keepdim=True).clamp(min=1) - 1
    cut = over.gather(1, last).clamp(min=0)
    return torch.where(size.sum(1, keepdim=True) <= radius, d, d.sign() * (size - cut).clamp(min=0))
