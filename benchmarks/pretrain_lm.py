"""A tiny causal language model with its own tokenizer, trained on the records of a Parquet file: for trying instruction tuning
where no pretrained model is available.

    python benchmarks/pretrain_lm.py $RAYFED_SHELF/dolly_tasks/train.parquet
    python benchmarks/pretrain_lm.py FILE --out DIR --minutes 2 --layers 4

The model is small (about a million parameters, a vocabulary of 2,048) and has seen a few megabytes of text for minutes: its
sentences look like English and mean little. It stands in for a pretrained model's folder, it does not replace one.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from rayfed.data import instruct
from rayfed.storage.cache import cache_folder

END = "<|end|>"


def texts(file: Path) -> list[str]:
    """Return each row's texts (columns of strings, but for names of clients and splits), as a record where it is one."""
    table = pq.read_table(file)
    names = {f: next((c for c in known if c in table.column_names), None) for f, known in instruct.COLUMNS.items()}
    rows = table.to_pylist()
    if names["instruction"] and names["response"]:
        made = instruct.layout(instruct.TEMPLATE)
        fields = [names[f] for f in instruct.FIELDS]
        return ["".join(instruct.rendered(made, [str((r[n] if n else "") or "") for n in fields])) for r in rows]
    columns = [f.name for f in table.schema if str(f.type) == "string" and f.name not in ("client", "domain", "split")]
    if not columns:
        raise SystemExit(f"{file} has no column of texts; columns: {', '.join(table.column_names)}")
    return ["\n".join(str(r[c]) for c in columns if r[c]) for r in rows]


def tokenizer(of: list[str], size: int) -> Any:
    """Train a byte-level BPE tokenizer of `size` tokens on the texts; its only special token ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        of, trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)


def options() -> argparse.Namespace:
    """Read the command line."""
    about = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about.add_argument("file", type=Path, help="Parquet file with texts, or with instructions and responses")
    about.add_argument("--out", type=Path, default=cache_folder() / "models" / "tiny-lm", help="folder of the model")
    about.add_argument("--minutes", type=float, default=2.0, help="time to train")
    about.add_argument("--layers", type=int, default=2)
    about.add_argument("--width", type=int, default=128)
    about.add_argument("--vocabulary", type=int, default=2048)
    about.add_argument(
        "--length", type=int, default=128, help="tokens of a training window; the model takes four times as many"
    )
    about.add_argument("--batch", type=int, default=8)
    about.add_argument("--seed", type=int, default=0)
    a = about.parse_args()
    if not a.file.is_file():
        raise SystemExit(f"{a.file} does not exist")
    return a


def train(model: Any, ids: np.ndarray, a: argparse.Namespace) -> int:
    """Train on windows of the token ids for as long as asked; return the number of steps."""
    rng = np.random.default_rng(a.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01)
    began, step, printed = time.monotonic(), 0, -20.0
    while (spent := time.monotonic() - began) < 60 * a.minutes:
        share = spent / (60 * a.minutes)
        for g in optimizer.param_groups:  # a short warm-up, then a cosine over the time there is
            g["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))
        # One window in eight is as long as the model takes, so that all its positions are trained.
        length, rows = (4 * a.length, a.batch // 4) if step % 8 == 7 else (a.length, a.batch)
        length = min(length, len(ids) - 1)
        starts = rng.integers(0, len(ids) - length, max(1, rows))
        x = torch.as_tensor(np.stack([ids[i : i + length] for i in starts]).astype(np.int64))
        loss = model(input_ids=x, labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if spent - printed >= 20:
            printed = spent
            print(f"{spent:5.0f} s  step {step}  loss {float(loss.detach()):.3f}", flush=True)
    return step


def loss_on(model: Any, held: np.ndarray, length: int) -> float:
    """Return the mean loss on held-out token ids, in windows."""
    starts = range(0, len(held) - length, length)
    pieces = [torch.as_tensor(held[i : i + length][None].astype(np.int64)) for i in starts]
    with torch.no_grad():
        return float(np.mean([float(model(input_ids=x, labels=x).loss) for x in pieces[:64]]))


def main() -> None:
    a = options()
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(a.seed)
    given = texts(a.file)
    tok = tokenizer(given, a.vocabulary)
    ids = np.concatenate([[*i, tok.eos_token_id] for i in tok(given)["input_ids"]])
    held, ids = ids[-len(ids) // 20 :], ids[: -len(ids) // 20]
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tok), n_positions=4 * a.length, n_embd=a.width, n_layer=a.layers, n_head=max(1, a.width // 32),
            bos_token_id=tok.eos_token_id, eos_token_id=tok.eos_token_id,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    size = sum(p.numel() for p in model.parameters())
    print(f"{len(given)} texts, {len(ids) + len(held)} tokens; {size:,} parameters")
    steps = train(model, ids, a)
    model.eval()
    found, guess = loss_on(model, held, a.length), math.log(len(tok))
    print(f"loss on held-out text: {found:.3f} per token after {steps} steps (a uniform guess: {guess:.3f})")
    model.save_pretrained(a.out)
    tok.save_pretrained(a.out)
    print(f"{a.out}: a small model, for trying things out")


if __name__ == "__main__":
    main()
