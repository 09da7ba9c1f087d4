"""Pretrained transformers small enough for every test: random weights, a tokenizer of 23 words, texts whose words give away the class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from rayfed import fold
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.models.start import start_from
from rayfed.storage.cache import CACHE
from tests import toy

WORDS = [[f"w{c}{i}" for i in range(6)] for c in range(3)]
KINDS: dict[str, Any] = {
    "lora": {"kind": "lora", "rank": 2, "alpha": 8, "targets": ["query", "value"]},
    "ia3": {"kind": "ia3", "targets": ["key", "value", "intermediate.dense"], "feedforward": ["intermediate.dense"]},
    "bias": {"kind": "bias"},
    "full": {"kind": "full"},
}


def pefts(network: Any, **given: Any) -> Any:
    """Calls a PeftModel by its own forward pass, or for a prefix by hand where PEFT does not know the network's argument for it."""
    try:
        return network(**given)
    except ValueError as e:
        if "does not support past key values" not in str(e):
            raise
    past = network.get_prompt(len(given["input_ids"]))
    keep = given["attention_mask"]
    given["attention_mask"] = torch.cat([keep.new_ones(len(keep), past.get_seq_length()), keep], 1)
    return network.get_base_model()(**given, cache=past)


def make_tokenizer(where: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(w for c in WORDS for w in c), "the"])
    }
    made = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(where)


def make_model(where: Path, kind: str = "bert", layers: int = 2, spread: float = 0.02) -> None:
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

    torch.manual_seed(0)
    if kind == "bert":
        BertModel(
            BertConfig(
                vocab_size=32, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24,
                max_position_embeddings=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                initializer_range=spread,
            )
        ).save_pretrained(where)  # fmt: skip
    else:
        GPT2Model(
            GPT2Config(
                vocab_size=32,
                n_embd=16,
                n_layer=layers,
                n_head=2,
                n_positions=24,
                initializer_range=spread,
                bos_token_id=2,
                eos_token_id=3,
            )
        ).save_pretrained(where)
    make_tokenizer(where)


def make_vit(where: Path, layers: int = 2, **more: Any) -> None:
    """A ViT of 8x8 images of one channel, as a classifier of 10 classes; `more`: of its config."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    about = {
        "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": layers,
        "num_attention_heads": 2, "intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2, "num_labels": 10,
    }  # fmt: skip
    ViTForImageClassification(ViTConfig(**{**about, **more})).save_pretrained(where)


def make_places(root: Path, layers: int = 2, spread: float = 0.02) -> dict[str, Path]:
    """`bert`, `gpt2`: model folders; `data`: texts whose words give away the class, 3 classes of 40 + 8."""
    for kind in ("bert", "gpt2"):
        make_model(root / kind, kind, layers, spread)
    make_texts(root / "data")
    return {k: root / k for k in ("bert", "gpt2", "data")}


def make_texts(where: Path) -> None:
    """Write texts whose words give away the class as Parquet: 3 classes of 40 train and 8 test rows."""
    rng = np.random.default_rng(0)
    where.mkdir()
    for name, n in (("train", 120), ("test", 24)):
        y = np.arange(n) % 3
        texts = [" ".join(["the", *rng.choice(WORDS[c], rng.integers(2, 9))]) for c in y]
        pq.write_table(pa.table({"text": texts, "label": y}), where / f"{name}.parquet")


def changes(places: dict[str, Path], kind: str = "bert", **more: Any) -> dict[str, Any]:
    """Changes to the toy's config: a tiny transformer with LoRA on texts, six clients."""
    base = {
        "task": {
            "data": {"name": f"parquet:{places['data']}", "length": 8},
            "model": {"name": f"hf:{places[kind]}"},
        },
        "adapter": KINDS["lora"],
        "federation": {
            "clients": 6, "per_round": 3, "partition": {"kind": "dirichlet", "alpha": 1.0}, "groups": {"kind": "none"},
            "holdout": {"kind": "none"},
        },
        "local": {"steps": 3, "epochs": None, "batch_size": 4, "optimizer": {"name": "adamw", "lr": 0.01}},
    }  # fmt: skip
    return toy.merge(base, more)


def make_fed(c: Any, pool: Any = None, kind: type[toy.ToyFed] = toy.ToyFed) -> toy.ToyFed:
    """As `toy.make_fed`, with what a run starts from: a pretrained model's frozen base, `init.from`."""
    split, pool, start = toy.federation(c), pool or LocalPool(), start_from(c)
    here = Resident(c, split, start, "cpu")
    pool.setup("toy", c, split, start)
    toy.check_model(here)
    return kind(c, split, here.method, here.task, pool, "toy")


@pytest.fixture(scope="session")
def on_bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Adds to changes of the toy's config: its clients hold texts, the model is a BERT of one layer with LoRA.

    From its first use on, federations made by hand start from a base as runs do; other models are as before.
    """

    @cache
    def base() -> dict[str, Any]:
        places = make_places(tmp_path_factory.mktemp("pretrained"), layers=1, spread=0.4)
        made = changes(places, local={"steps": 2, "optimizer": {"name": "sgd", "lr": 0.5}})
        return {**made, "federation": {"groups": {"kind": "none", "count": 1}}}

    with pytest.MonkeyPatch.context() as m:
        m.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        m.setattr(toy, "make_fed", make_fed)
        yield lambda changes: toy.merge(base(), changes)


class Watched(toy.ToyFed):
    """Keeps what every ask gave in `got`, with the folded parts still reachable."""

    def ask(self, visit: Any, to: Any, **more: Any) -> Any:
        folds = more.get("fold", ())
        parts = [f.part for f in ([folds] if isinstance(folds, fold.Fold) else folds)]
        out = super().ask(visit, to, **{**more, "keep": parts})
        self.got = [*getattr(self, "got", []), out]
        return out


def descend(fed: Any, client: int, params: Any, moves: Callable[[str], bool], steps: int, lr: float) -> Any:
    """`steps` gradient steps on a client's whole training data by torch's own autograd; only names that `moves` takes."""
    rows = fed.federation.train[client]
    x, y = (torch.as_tensor(fed.federation.arrays[k][rows]) for k in ("x", "y"))
    here = {n: p.detach().clone().requires_grad_(moves(n)) for n, p in params.items()}
    for _ in range(steps):
        logits = torch.func.functional_call(fed.task._module, here, (x,))
        moving = [p for p in here.values() if p.requires_grad]
        for p, g in zip(moving, torch.autograd.grad(F.cross_entropy(logits, y), moving), strict=True):
            p.data -= lr * g
    return {n: p.detach() for n, p in here.items()}


WHOLE = {"local": {"steps": 3, "epochs": None, "batch_size": 64}}  # 3 steps on a client's whole data
