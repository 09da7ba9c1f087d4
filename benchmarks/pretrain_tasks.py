"""A tiny causal language model that follows instructions about lists of letters, and records of eight kinds that it never saw:
what the claim about federated instruction tuning starts from.

    python benchmarks/pretrain_tasks.py [FOLDER]

FOLDER: where the model is written in transformers' format, with the records in FOLDER/tasks, and others of the sixteen kinds that it was
trained on in FOLDER/known.parquet; default
$RAYFED_MODELS/tiny-lm-tasks, or ~/.cache/rayfed/models/tiny-lm-tasks. It takes about a minute on one core, and gives the same
weights each time on one machine. A record is one instruction about 3 to 6 letters, `reverse: c a f = f a c`. The model (300,000
parameters) is trained on endless records of sixteen kinds; the records on disk are of eight others, 250 each to train and 40 to test.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pretrain_lm import tokenizer

from rayfed.launch.claims import models_folder

LETTERS = "abcdefghijklmnop"
STEPS = 1500
BATCH = 32
Kinds = Mapping[str, Callable[[list[str]], list[str]]]


def moved(c: str, by: int) -> str:
    return LETTERS[(LETTERS.index(c) + by) % len(LETTERS)]


KNOWN: Kinds = {
    "say": lambda x: x,
    "first": lambda x: x[:1],
    "last": lambda x: x[-1:],
    "second": lambda x: x[1:2],
    "twice": lambda x: x + x,
    "all but the first": lambda x: x[1:],
    "all but the last": lambda x: x[:-1],
    "without the ends": lambda x: x[1:-1],
    "turn left": lambda x: x[1:] + x[:1],
    "turn right": lambda x: x[-1:] + x[:-1],
    "every other": lambda x: x[::2],
    "capitals": lambda x: [c.upper() for c in x],
    "next": lambda x: [moved(c, 1) for c in x],
    "smallest": lambda x: [min(x)],
    "without a to d": lambda x: [c for c in x if c > "d"] or ["none"],
    "count": lambda x: [str(len(x))],
}
FEDERATED: Kinds = {
    "reverse": lambda x: x[::-1],
    "sort": sorted,
    "swap the ends": lambda x: x[-1:] + x[1:-1] + x[:1],
    "largest": lambda x: [max(x)],
    "double": lambda x: [c for c in x for _ in range(2)],
    "previous": lambda x: [moved(c, -1) for c in x],
    "the ends": lambda x: [x[0], x[-1]],
    "first in capitals": lambda x: [x[0].upper(), *x[1:]],
}


def record(kind: str, kinds: Kinds, rng: random.Random) -> dict[str, str]:
    x = rng.choices(LETTERS, k=rng.randint(3, 6))
    return {"instruction": kind, "input": " ".join(x), "response": " ".join(kinds[kind](x)), "category": kind}


def prompt(r: Mapping[str, str]) -> str:
    return f"{r['instruction']}: {r['input']} ="


def text(r: Mapping[str, str]) -> str:
    return f"{prompt(r)} {r['response']}"


def batch(tok: Any, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, T) of records of known kinds and labels (B, T), -100 but on the answers and their end."""
    rows = [record(rng.choice(list(KNOWN)), KNOWN, rng) for _ in range(BATCH)]
    before = [len(i) for i in tok([prompt(r) for r in rows])["input_ids"]]
    ids = [[*i, tok.eos_token_id] for i in tok([text(r) for r in rows])["input_ids"]]
    x = torch.full((BATCH, max(map(len, ids))), tok.eos_token_id)
    y = torch.full_like(x, -100)
    for row, label, i, n in zip(x, y, ids, before, strict=True):
        row[: len(i)] = torch.tensor(i)
        label[n : len(i)] = row[n : len(i)]
    return x, y


def write_known(where: Path) -> None:
    """Write records of the kinds that the model was trained on, 50 each, on which it is measured what later training forgets."""
    rng = random.Random(1)
    rows = [record(k, KNOWN, rng) for k in KNOWN for _ in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), where / "known.parquet")


def main(where: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = random.Random(0)
    every = {**KNOWN, **FEDERATED}
    tok = tokenizer([text(record(k, every, rng)) for k in every for _ in range(100)], 400)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tok), hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
            max_position_embeddings=64, bos_token_id=None, eos_token_id=tok.eos_token_id, pad_token_id=tok.eos_token_id,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 100) * (0.05 + 0.475 * (1 + math.cos(math.pi * i / STEPS)))
    )
    for step in range(1, STEPS + 1):
        x, y = batch(tok, rng)
        loss = model(input_ids=x, labels=y).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step}: loss on answers {float(loss.detach()):.3f}", flush=True)
    model.eval()
    model.save_pretrained(where)
    tok.save_pretrained(where)
    write_known(where)
    (where / "tasks").mkdir(exist_ok=True)
    for name, n in (("train", 250), ("test", 40)):
        rows = [record(k, FEDERATED, rng) for k in FEDERATED for _ in range(n)]
        pq.write_table(pa.Table.from_pylist(rows), where / "tasks" / f"{name}.parquet")
    print(f"written: {where}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else models_folder() / "tiny-lm-tasks")
