"""A tiny pair of towers, trained here on drawn shapes and their names: what `task.model: two_tower` is where no folder is named.

    python benchmarks/pretrain_towers.py [FOLDER]

FOLDER: where it is written in transformers' format (CLIPModel, with its tokenizer); default rayfed/config/ready/tiny-towers, which
comes with the package. It takes half a minute on one core, and gives the same weights each time on one machine. Trained on
clean pictures (`synthetic:shapes` with little noise and shift), each with its name in one of several sentences; what is federated
afterwards are pictures with noise on other backgrounds. It is a mechanism to try prompts on, and no CLIP.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from rayfed import data
from rayfed.config.schema import TINY_PAIR, Named
from rayfed.data.synthetic import COLOURS, SHAPES

STEPS = 1500
BATCH = 64
SENTENCES = ("{}.", "a {}.", "a picture of a {}.", "a drawing of the {}.")
WIDTH = 32
PICTURES = {"name": "synthetic:shapes", "classes": 30, "examples": 12000, "test": 600, "noise": 0.1, "shift": 0.3}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of these words, whose texts begin with [BOS] and end with [EOS]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {w for s in SENTENCES for w in s.replace("{}", "").replace(".", " .").split()} | {*COLOURS, *SHAPES}
    known = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *sorted(words)]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]"
    )


def network(vocabulary: int) -> CLIPModel:
    """Return the pair, freshly drawn."""
    each = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **each,
        "vocab_size": vocabulary,
        "max_position_embeddings": 24,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    vision = {**each, "image_size": 16, "patch_size": 4, "num_channels": 3}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)).train()


def main(where: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    pictures = data.load(Named.model_validate(PICTURES), 0)
    x, y = torch.as_tensor(pictures.train.x), torch.as_tensor(pictures.train.y)
    words = tokenizer()
    made = network(len(words))
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        rows = torch.randint(len(x), (BATCH,), generator=draw)
        said = [SENTENCES[int(i)] for i in torch.randint(len(SENTENCES), (pictures.classes,), generator=draw)]
        texts = [s.replace("{}", n) for s, n in zip(said, pictures.label_names, strict=True)]
        ids = words(texts, padding=True, return_tensors="pt")
        out = made(pixel_values=(x[rows] - 0.5) / 0.5, **{n: ids[n] for n in ("input_ids", "attention_mask")})
        loss = F.cross_entropy(out.logits_per_image, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            made.logit_scale.clamp_(max=3.4)
        if step % 250 == 249:
            right = float((out.logits_per_image.argmax(1) == y[rows]).float().mean())
            print(f"step {step + 1}: loss {loss.item():.3f}, right {right:.2f}", flush=True)
    where.mkdir(parents=True, exist_ok=True)
    made.eval().save_pretrained(where)
    words.save_pretrained(where)
    says = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (where / "preprocessor_config.json").write_text(json.dumps(says, indent=1), encoding="utf-8")
    print(f"written: {where}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else TINY_PAIR))
