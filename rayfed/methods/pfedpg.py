"""pFedPG: the server generates a prompt for each client, and learns to from how clients move theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import ANY, MethodSettings, Part, Visit, Wire, keys, model_of, optimizers, sgd_visit, tree, visit
from rayfed.errors import ConfigError
from rayfed.lazy import torch
from rayfed.methods._bases.over_adapter import OverAdapter
from rayfed.wire import params_but, params_of, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config

PROMPT, HEAD = params_but("head"), params_of("head")


class PFedPG(OverAdapter):
    """Yang et al. 2023, "Efficient Model Personalization in Federated Learning via Client-Specific Prompt Generation" (ICCV 2023,
    2308.15367); the generator as two unofficial implementations have it.

    Server: P_n = P + softmax((d_n W_q)(P W_k)^T / sqrt(k)) (P W_v) W_o, P (L, d) a basis of prompts, d_n (L, d) a descriptor of client n,
    W_q, W_k (d, k), W_v (d, k), W_o (k, d).
    Client n: trains from P_n, and its own head; sends the change of the prompt, Delta_n.
    Server: one step of Adam on sum_n ||P_n - (P_n + Delta_n)||^2 / 2, the second term held: so that the new P_n is nearer to what the
    client made of it. No averaging. With `descriptor: one` d_n is (1, d), and all tokens of a prompt move alike.
    Clients that are absent have no gradient of theirs; Adam's momentum moves their descriptors all the same. A client without a descriptor
    (held out) has d = 0, and like one that never took part the run's first head (ours).
    `adapter: {kind: vpt, deep: false}` for images, `prompt` for texts (ours).
    Down: P_n (L, d). Up: its change. Kept at client n: its head. At the server: P, W, d of all N, Adam's state.
    """

    kinds = ("vpt", "prompt")

    class Settings(MethodSettings):
        width: int = Field(32, ge=1, description="Width k of the generator's attention.")
        descriptor: Literal["tokens", "one"] = Field(
            "tokens", description="A descriptor's rows: one for each token of a prompt, or one."
        )
        server_lr: float = Field(1e-3, gt=0, description="Rate of the server's Adam.")

    wire: ClassVar[Wire] = Wire(
        down={"prompt": Part(PROMPT, note="P_n")},
        up={"delta": Part(PROMPT, update=True, note="of P_n")},
        keep={"head": Part(HEAD, private=True)},
        server={
            "generator": Part(ANY, note="P, W_q, W_k, W_v, W_o"),
            "descriptors": Part(tensor("N", "L", "d")),
            "adam": Part(ANY, note="Adam's state of both"),
        },
    )
    universal: ClassVar[str | None] = None
    no_rule = "each client's update moves its own descriptor, and none is averaged"

    def check(self, config: Config) -> list[str]:
        out = super().check(config)
        if config.adapter.kind == "vpt" and config.adapter.deep:
            out.append("adapter.deep: true found, allowed with method.name: pfedpg: false; it generates one prompt")
        return out

    def init(self, task: Task, key: int) -> Tree:
        basis = task.init_params(key)[prompt_name(task)]
        tokens, d = basis.shape
        rng = keys.numpy(keys.key(key, 0, -1, "generator"))

        def uniform(*shape: int, bound: float) -> Tensor:
            return torch.as_tensor(rng.uniform(-bound, bound, shape)).to(basis.device, basis.dtype)

        k, rows = self.settings.width, tokens if self.settings.descriptor == "tokens" else 1
        generator = {n: uniform(d, k, bound=d**-0.5) for n in ("q", "k", "v")}
        made = {
            "generator": {"base": basis, **generator, "o": uniform(k, d, bound=k**-0.5)},
            "descriptors": uniform(task.population, rows, d, bound=1.0),
        }
        return {**made, "adam": optimizers.adam().init(made)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"head": HEAD.select(task.initial, task)}

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": {**client.mine["prompt"], **client.own["head"]}}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            prompt = PROMPT.select(carry["model"], task)
            return {"delta": tree.sub(prompt, client.mine["prompt"])}, {"head": HEAD.select(carry["model"], task)}

        return sgd_visit(task.loss, self.local, start=start, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        name, clients = prompt_name(task), fed.sample()
        prompts = generated(state["generator"], state["descriptors"][list(clients)])
        mine = {c: {"prompt": {name: p}} for c, p in zip(clients, prompts, strict=True)}
        got = fed.ask(self.train, clients, mine=mine)
        if not got.ids:
            return state
        at = torch.tensor(got.ids)
        params: Tree = {k: state[k] for k in ("generator", "descriptors")}
        adapted = generated(params["generator"], params["descriptors"][at]) + got.stacked("delta")[name]
        slopes = torch.func.grad(lambda phi: displacement(phi, at, adapted))(params)
        params, adam = optimizers.adam().update(slopes, state["adam"], params, self.settings.server_lr)
        return {**params, "adam": adam}

    def serve(self, state: Tree) -> Tree:
        return {}

    def mine(self, state: Tree, client: int) -> Tree:
        known = client < len(state["descriptors"])
        d = state["descriptors"][client] if known else torch.zeros_like(state["descriptors"][0])
        return {"prompt": generated(state["generator"], d)}

    def view(self, task: Task) -> Visit:
        name = prompt_name(task)
        return model_of(lambda client: {name: client.mine["prompt"], **client.own["head"]})


def prompt_name(task: Task) -> str:
    """Return the name of the one trained matrix besides the head. ConfigError where there is none."""
    found = PROMPT.select(task.params_like, task)
    if len(found) == 1 and next(iter(found.values())).dim() == 2:
        return next(iter(found))
    raise ConfigError(
        f"adapter.kind: {task.config.adapter.kind} found, it trains {', '.join(found)}; allowed with method pfedpg: one matrix of tokens"
    )


def generated(g: Tree, d: Tensor) -> Tensor:
    """Return the prompts (.., L, d) that a generator makes of descriptors (.., L or 1, d)."""
    q, k, v = d @ g["q"], g["base"] @ g["k"], g["base"] @ g["v"]
    return g["base"] + torch.softmax(q @ k.T / k.shape[1] ** 0.5, -1) @ v @ g["o"]


def displacement(phi: Tree, clients: Tensor, adapted: Tensor) -> Tensor:
    """Return half of the squared distance of these clients' prompts from `adapted` (n, L, d), which is held; 0-d."""
    return (generated(phi["generator"], phi["descriptors"][clients]) - adapted).square().sum() / 2
