"""The workloads on one device: rayfed's own task, batch sampler and visit, and the same visits as a plain loop.

Nothing here needs Ray or a whole config: a task and a visit read a handful of settings, which `settings` and `local` spell out. Data
are random, of the workloads' shapes; the speed does not depend on what they mean.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rayfed import execute, task, tree
from rayfed.config.schema import Local, LoRA, TaskSection, Whole
from rayfed.execute.batches import BatchSampler, Cohort, gather
from rayfed.partition import Federation, Index
from rayfed.training import sgd_visit

LR = 0.1
QKV = {"q_proj", "k_proj", "v_proj", "query", "key", "value"}
MINILM = {
    "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
    "vocab_size": 30522,
}  # fmt: skip
DECODER = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 5632, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
TINY = DECODER | {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
    "vocab_size": 256,
}  # fmt: skip


@dataclass
class Setup:
    """A workload ready to train: `length` is tokens per example, None where examples are no texts."""

    task: Any
    sampler: BatchSampler
    fresh: Callable[[], Any]  # makes a visit
    data: dict[str, torch.Tensor]
    clients: int
    length: int | None
    plain_loss: Callable[[Any, Any], torch.Tensor]  # (module, batch) -> mean loss, as anyone would write it

    def __post_init__(self) -> None:
        self.visit = self.fresh()

    def cohorts(self, k: int, of: range | None = None) -> list[Cohort]:
        """Return all clients, or some of them, k per call."""
        of = range(self.clients) if of is None else of
        calls = [of[i : i + k] for i in range(0, len(of), k)]
        return [self.sampler.cohort(self.visit, ids, dispatch=1, round=1, rounds=1, lr=LR) for ids in calls]


def settings(
    model: str, options: dict[str, Any], dtype: str = "float32", rank: int = 0, targets: tuple[str, ...] = ()
) -> Any:
    """Return what a task reads of a run's config."""
    return SimpleNamespace(
        seed=0,
        task=TaskSection(dtype=dtype, data="random", model={"name": model, **options}),
        adapter=LoRA(kind="lora", rank=rank, targets=list(targets)) if rank else Whole(),
        local=Local(),
    )


def local(*, epochs: int | None = None, steps: int | None = None) -> Any:
    """Return what a visit reads of `local`: plain SGD."""
    return Local(epochs=epochs, steps=steps, optimizer={"name": "sgd", "lr": LR})


def federation(x: np.ndarray, y: np.ndarray, owner: np.ndarray, kind: str, classes: int) -> Federation:
    """Return the federation of rows x, y (n, ...) of clients `owner` (n,); only training splits."""
    n = int(owner.max()) + 1
    none = Index.of(np.zeros(0, np.int64), np.zeros(0, np.int64), n)
    counts = np.zeros((n, classes), np.int64)
    np.add.at(counts, (owner, y), 1)
    return Federation(
        arrays={"x": x, "y": y}, train=Index.of(owner, np.arange(len(y)), n), val=none, test=none, pooled_test=np.zeros(0, np.int64),
        population=n, group=np.full(n, -1), names=tuple(map(str, range(n))), class_counts=counts, classes=classes,
        input_shape=x.shape[1:], kind=kind, label_names=tuple(map(str, range(classes))),
    )  # fmt: skip


def setup(made: Any, fed: Federation, batch: int, work: Any, device: str, plain_loss: Any) -> Setup:
    """Return a task with data; see `rayfed.engine.resident.Resident`, which does the same from a config."""
    arrays = {n: torch.as_tensor(x) for n, x in fed.arrays.items()}
    data = {n: x.to(device, made.dtype if x.is_floating_point() else x.dtype) for n, x in arrays.items()}
    ranks = np.full(fed.population, made.ranks[0])
    sampler = BatchSampler(fed, seed=0, batch_size=batch, device=device, dtype=made.dtype, ranks=ranks)
    length = fed.input_shape[-1] if fed.kind in ("text", "instruct") else None
    return Setup(made, sampler, lambda: sgd_visit(made.loss, work), data, fed.population, length, plain_loss)


def vision_loss(module: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(module(batch["x"]), batch["y"])


def w1(device: str, tiny: bool) -> Setup:
    """MLP 64-128-10, 20 clients with Dirichlet(0.5) labels out of 100 that share 1,437 rows, batch 16, one epoch."""
    rng, clients = np.random.default_rng(1), 4 if tiny else 20
    y = np.arange(1437) % 10
    owner = np.empty(len(y), np.int64)
    for c in range(10):
        owner[y == c] = rng.choice(100, (y == c).sum(), p=rng.dirichlet(np.full(100, 0.5)))
    owner[:100] = np.arange(100)  # nobody is empty
    mine = owner < clients
    x = rng.normal(size=(mine.sum(), 64)).astype(np.float32)
    fed = federation(x, y[mine], owner[mine], "tabular", 10)
    made = task.Task(settings("mlp", {"hidden": [128]}), fed, device)
    return setup(made, fed, 16, local(epochs=1), device, vision_loss)


def w2(device: str, tiny: bool) -> Setup:
    """McMahan's CNN on 28x28, 100 clients of 40 images, batch 20, one epoch."""
    rng, clients = np.random.default_rng(2), 2 if tiny else 100
    owner = np.repeat(np.arange(clients), 40)
    x = rng.random((len(owner), 1, 28, 28), np.float32)
    fed = federation(x, rng.integers(0, 10, len(owner)), owner, "image", 10)
    return setup(task.Task(settings("cnn", {}), fed, device), fed, 20, local(epochs=1), device, vision_loss)


def w3(device: str, tiny: bool, weights: Path | None, clients: int | None = None) -> Setup:
    """MiniLM with LoRA r = 8 on query and value and a linear head, 10 clients of 64 texts of 32 tokens, batch 8, one epoch.

    weights: its folder; None for random weights of the same architecture.
    """
    rng, clients, texts = np.random.default_rng(3), clients or (4 if tiny else 10), 16 if tiny else 64
    owner = np.repeat(np.arange(clients), texts)
    x = rng.integers(1000, 20000, (len(owner), 32)).astype(np.int32)
    for row, n in zip(x, rng.integers(16, 33, len(x)), strict=True):
        row[n:] = -1
    fed = federation(x, rng.integers(0, 4, len(owner)), owner, "text", 4)
    c = settings(
        f"hf:{weights or 'random'}",
        {"head": "mean", "attention": "eager", "dropout": False},
        rank=8,
        targets=("query", "value"),
    )
    if weights is not None:
        from rayfed.models import pretrained

        base = pretrained.base(c)
    else:
        small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        base = random_base(MINILM | (small if tiny else {}), "AutoModel", torch.float32, device)
    made = task.Task(c, fed, device, {"base": base})
    return setup(made, fed, 8, local(epochs=1), device, text_loss)


def text_loss(module: Any, batch: Any) -> torch.Tensor:
    """transformers' own forward with a 2-D mask, the mean of the tokens, a linear head."""
    keep = batch["x"] >= 0
    hidden = module.network(input_ids=batch["x"].clamp(min=0).long(), attention_mask=keep.long()).last_hidden_state
    w = keep.to(hidden.dtype)[..., None]
    return F.cross_entropy(module.head((hidden * w).sum(1) / w.sum(1)), batch["y"])


def decoder_task(
    about: dict[str, Any], device: str, rank: int, dtype: str = "bf16", checkpointing: bool = False
) -> Any:
    """Return a Llama-like decoder with random weights and LoRA on the attention's query and value projections."""
    base = random_base(about, "AutoModelForCausalLM", torch.bfloat16 if dtype == "bf16" else torch.float32, device)
    options = {"attention": "sdpa", "checkpointing": checkpointing, "dropout": False}
    c = settings("hf:random", options, dtype, rank, ("q_proj", "v_proj"))
    return task.of("instruct")(c, records(1, 1, 8, about["vocab_size"]), device, {"base": base})


def decoder(made: Any, device: str, clients: int, batch: int, length: int, steps: int = 2) -> Setup:
    """`decoder_task` with `steps` SGD steps per client on random records, all of whose tokens but the first count."""
    fed = records(clients, batch * steps, length, made.vocabulary)
    return setup(made, fed, batch, local(steps=steps), device, causal_loss)


def records(clients: int, each: int, length: int, vocabulary: int) -> Federation:
    """Return random token ids (n, 2, L), their targets the same."""
    owner = np.repeat(np.arange(clients), each)
    ids = np.random.default_rng(4).integers(1, vocabulary, (len(owner), 1, length)).astype(np.int32)
    return federation(np.repeat(ids, 2, 1), np.zeros(len(owner), np.int64), owner, "instruct", 1)


def causal_loss(module: Any, batch: Any) -> torch.Tensor:
    """transformers' own forward and mask, cross-entropy of the next token."""
    ids = batch["x"][:, 0].long()
    logits = module.network(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def random_base(about: dict[str, Any], auto: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Return what `rayfed.models.pretrained.base` gives, with random weights drawn on the device; no file is written."""
    import transformers

    config = transformers.CONFIG_MAPPING[about["model_type"]].from_dict(about)
    with torch.device("meta"):
        network = getattr(transformers, auto).from_config(config)
    g = torch.Generator(device).manual_seed(0)
    arrays = {}
    for n, p in network.state_dict().items():
        x = torch.empty(p.shape, dtype=dtype if p.is_floating_point() else p.dtype, device=device)
        if "norm" in n.lower():
            x.fill_(0.0 if n.endswith("bias") else 1.0)
        elif x.is_floating_point():
            x.normal_(0, 0.02, generator=g)
        else:
            x.zero_()
        arrays[n] = x.cpu()
    return {"arrays": tree.to_numpy(arrays), "about": {**config.to_dict(), "pad_token_id": 0}}


# -- training ----------------------------------------------------------------------------------------------------------


def ours(s: Setup, kind: str, cohorts: list[Cohort]) -> Any:
    """Execute all visits under one of rayfed's executors; return the updates, leaves (n, ...)."""
    shared = {"model": s.task.initial}
    with torch.no_grad():
        found = [
            parts["delta"]
            for co in cohorts
            for _, parts, _, _ in execute.execute_visit(kind, s.visit, co, shared, {}, {}, s.data)
        ]
    return tree.map(lambda *xs: torch.cat(xs), *found)


def batches(s: Setup, cohorts: list[Cohort]) -> list[list[Any]]:
    """Return each client's batches, on the device, without padded rows: for `plain`, which is not charged for making them."""
    out = []
    for co in cohorts:
        for i in range(len(co.clients)):
            (plan,) = co.one(i).phases
            at = gather(plan, s.data)
            steps = [(at(t), int(plan.w[0, t].sum())) for t in range(plan.active.shape[1])]
            out.append([{n: x[0, :real] for n, x in b.items() if n != "w"} for b, real in steps])
    return out


def plain(s: Setup, clients: list[list[Any]]) -> Any:
    """Train one client after another as anyone would write it: the module, autograd, torch.optim.SGD."""
    module, names, start = s.task._module, list(s.task.params_like), s.task.initial
    own = dict(module.named_parameters())
    mine = [own[n].requires_grad_(True) for n in names]
    kind = torch.device(s.task.device).type
    out = []
    for steps in clients:
        with torch.no_grad():
            for n, p in zip(names, mine, strict=True):
                p.copy_(start[n])
        opt = torch.optim.SGD(mine, lr=LR)
        for batch in steps:
            with torch.autocast(kind, torch.bfloat16) if s.task.half else nullcontext():
                loss = s.plain_loss(module, batch)
            opt.zero_grad()
            loss.backward()
            opt.step()
        out.append({n: p.detach() - start[n] for n, p in zip(names, mine, strict=True)})
    for p in mine:
        p.requires_grad_(False).grad = None
    return tree.stack(out)


def attention(s: Setup, how: str) -> None:
    """Set which of transformers' attention functions a task's network calls from now on: eager | sdpa."""
    network = getattr(s.task._module, "network", None)
    if network is not None:
        network.get_base_model().set_attn_implementation(how)
    s.visit = s.fresh()  # recordings of the one before have the other kernels


def apart(a: Any, b: Any) -> float:
    """Return the largest difference of two trees of updates as a share of b's largest entry, over the clients that both have."""
    rows = min(len(next(iter(t.values()))) for t in (a, b))
    gap = max(float((a[n][:rows] - b[n][:rows].to(a[n].device)).abs().max()) for n in b)
    return gap / max(float(b[n][:rows].abs().max()) for n in b)


def flops(made: Any, length: int, causal: bool) -> float:
    """Count the floating-point operations that one token of a sequence of `length` needs in a step of LoRA training.

    A linear layer with p weights: 2p forward, 2p backward for dL/dx, and 2p for dL/dW only if it is trained. So frozen weights cost
    4p, LoRA's factors 6p; embeddings nothing. In the first layer nothing before the input of query, key and value moves: their
    dL/dx and that of their factors A are left out. Attention per layer: Q K^T and A V, 4 L d forward and twice that backward, d being
    heads x size of a head; half of it where tokens see only what came before. Everything else (norms, softmax, activations, what a
    kernel or checkpointing computes again) counts as nothing.
    """
    about = made._module.network.config
    total = 0.0
    for name, m in made._module.named_modules():
        if isinstance(m, nn.Linear) and name != "head" and "pooler" not in name:  # those see a text once
            p = m.weight.numel()
            first = ".layers.0." in name or ".layer.0." in name
            below = first and "lora_B" not in name and any(part in QKV for part in name.split("."))
            total += 2 * p + (0 if below else 2 * p) + (2 * p if f"{name}.weight" in made.params_like else 0)
    heads = about.num_attention_heads
    size = getattr(about, "head_dim", None) or about.hidden_size // heads
    return total + about.num_hidden_layers * 12 * length * heads * size * (0.5 if causal else 1.0)
