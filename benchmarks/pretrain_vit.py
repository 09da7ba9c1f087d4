"""A tiny vision transformer, trained here on half of scikit-learn's digits: what the claims about adapters start from.

    python benchmarks/pretrain_vit.py [FOLDER]

FOLDER: where it is written in transformers' format; default $RAYFED_MODELS/tiny-vit-digits, or
~/.cache/rayfed/models/tiny-vit-digits. It takes about a minute on one core, and gives the same weights each time on one
machine. Trained on the classes 0 to 4 of the training images, each in four rotations whose angle is part of the class (20
classes); what is federated afterwards are the classes 5 to 9, which it has never seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTForImageClassification

from rayfed import data
from rayfed.config.schema import Named
from rayfed.launch.claims import models_folder

CLASSES = 5
EPOCHS = 60
BATCH = 64


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (n, 1, 8, 8) in [0, 1] of the known half, in four rotations, and their class (n,) of 20."""
    train = data.load(Named(name="digits"), 0).train
    known = train.y < CLASSES
    x = np.concatenate([np.rot90(train.x[known], k, (2, 3)) for k in range(4)])
    y = np.concatenate([train.y[known] + CLASSES * k for k in range(4)])
    return torch.as_tensor(x.copy()), torch.as_tensor(y)


def shifted(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return each image moved by at most one pixel in each direction."""
    at = torch.randint(0, 3, (2, len(x), 1), generator=draw) + torch.arange(x.shape[-1])
    return F.pad(x, (1, 1, 1, 1))[torch.arange(len(x))[:, None, None], 0, at[0][:, :, None], at[1][:, None, :]][:, None]


def main(where: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    about = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=4 * CLASSES,
    )  # fmt: skip
    network = ViTForImageClassification(about).train()
    x, y = images()
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(EPOCHS):
        right = 0
        for rows in torch.randperm(len(x), generator=draw)[: len(x) // BATCH * BATCH].split(BATCH):
            logits = network(pixel_values=(shifted(x[rows], draw) - 0.5) / 0.5).logits
            optimizer.zero_grad()
            F.cross_entropy(logits, y[rows]).backward()
            optimizer.step()
            schedule.step()
            right += int((logits.argmax(1) == y[rows]).sum())
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: accuracy on training images {right / (len(x) // BATCH * BATCH):.3f}", flush=True)
    where.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(where)
    says = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5], "image_std": [0.5],
    }  # fmt: skip
    (where / "preprocessor_config.json").write_text(json.dumps(says, indent=1), encoding="utf-8")
    print(f"written: {where}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else models_folder() / "tiny-vit-digits")
