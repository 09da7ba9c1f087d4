"""Causal language models and instructions small enough for every test: random weights, a tokenizer of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

SENTENCE = "copy say twice the red blue one two three four five six # Instruction : Input Response answer . a"
WORDS = SENTENCE.split()


def make_lm(where: Path, kind: str, *, eos: bool = True) -> None:
    """A causal language model with random weights and a tokenizer of words that knows no padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": 32, "bos_token_id": 1, "eos_token_id": 1 if eos else None}
    if kind == "gpt2":
        about: Any = GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=48, initializer_range=0.4, resid_pdrop=0, embd_pdrop=0,
            attn_pdrop=0, **size,
        )  # fmt: skip
        GPT2LMHeadModel(about).save_pretrained(where)
    else:
        about = LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=48, initializer_range=0.4, pad_token_id=None, **size,
        )  # fmt: skip
        LlamaForCausalLM(about).save_pretrained(where)
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", "</s>", *WORDS])}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    more = {"eos_token": "</s>"} if eos else {}
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **more).save_pretrained(where)


def make_data(where: Path, n: int = 72) -> list[dict[str, str]]:
    """Records of three categories, some with an input; a client column that follows the category."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        kind = ("copy", "say twice", "answer")[i % 3]
        words = " ".join(rng.choice(["red", "blue", "one", "two", "three"], rng.integers(1, 5)))
        rows.append(
            {"instruction": kind, "context": words if i % 2 else "", "response": f"{words} .", "category": kind}
        )  # fmt: skip
    where.mkdir()
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.slice(0, n - 12), where / "train.parquet")
    pq.write_table(table.slice(n - 12), where / "test.parquet")
    return rows
