"""What all engines in torch do alike: the models, one client's visit, a score on the pooled test set. The plan: plan.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from plan import SCALE, Plan
from torch import nn

# Work on the kernels that rayfed's timing may choose: oneDNN's products, channels-last convolutions.
KERNELS = bool(os.environ.get("PEERS_KERNELS"))
KILL = os.environ.get("PEERS_KILL", "").split(
    ","
)  # round (from 1) and client (from 0) whose process dies, and the file that says it has


def die_if_told(round: int, client: int) -> None:
    """End this process as `kill -9` does where PEERS_KILL names this visit, the first time."""
    if len(KILL) == 3 and (round, client) == (int(KILL[0]), int(KILL[1])) and not os.path.exists(KILL[2]):
        Path(KILL[2]).touch()
        os.kill(os.getpid(), signal.SIGKILL)


class MLP(nn.Module):
    def __init__(self, about: dict[str, Any]):
        super().__init__()
        self.hidden = nn.Linear(64, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class CNN(nn.Module):
    """McMahan et al. 2017, on 28x28."""

    def __init__(self, about: dict[str, Any]):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        self.fc, self.head = nn.Linear(64 * 7 * 7, 512), nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.head(torch.relu(self.fc(x.flatten(1))))


class MiniLM(nn.Module):
    """A BERT-like encoder with LoRA by PEFT, the mean of its tokens, and a linear head."""

    def __init__(self, about: dict[str, Any]):
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel

        how = {"attn_implementation": "eager"} if KERNELS else {}  # torch's fused one is slower on oneDNN's products
        base = AutoModel.from_pretrained(about["weights"], add_pooling_layer=False, **how)
        for p in base.parameters():
            p.requires_grad_(False)
        lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value"])
        self.network = get_peft_model(base, lora)
        self.head = nn.Linear(base.config.hidden_size, about["classes"])
        self.eval()  # as rayfed: no dropout in the frozen base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keep = x >= 0
        hidden = self.network(input_ids=x.clamp(min=0).long(), attention_mask=keep.long()).last_hidden_state
        w = keep.to(hidden.dtype)[..., None]
        return self.head((hidden * w).sum(1) / w.sum(1))


MODELS = {"mlp": MLP, "cnn": CNN, "minilm": MiniLM}


class Client:
    """One process's model, reused by all clients that it plays."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.x, self.y = torch.from_numpy(plan.x), torch.from_numpy(plan.y)
        self.net = MODELS[plan.about["model"]](plan.about)
        if KERNELS:
            torch.set_float32_matmul_precision("medium")
            self.net = self.net.to(memory_format=torch.channels_last)
        self.params = [p for p in self.net.parameters() if p.requires_grad]
        shapes = [tuple(p.shape) for p in self.params], [w.shape for w in plan.start]
        assert shapes[0] == shapes[1], shapes  # in the plan's order
        if plan.about["steps"]:  # what torch imports and chooses at its first step and score is no round's
            self.steps(0, 0)
            self.accuracy(plan.start)

    def load(self, weights: list[np.ndarray]) -> None:
        with torch.no_grad():
            for p, w in zip(self.params, weights, strict=True):
                p.copy_(torch.from_numpy(w))

    def visit(self, weights: list[np.ndarray], round: int, place: int) -> list[np.ndarray]:
        """Weights in, trained weights out: SGD over the planned batches. Workload N only scales them, by the client's number."""
        if not self.plan.about["steps"]:
            factor = np.float32(1 + SCALE * int(self.plan.clients[round, place]))
            return [w * factor for w in weights]
        self.load(weights)
        self.steps(round, place)
        return [p.detach().contiguous().numpy() for p in self.params]

    def steps(self, round: int, place: int) -> None:
        """SGD over the planned batches of one client, in place."""
        opt = torch.optim.SGD(self.params, lr=self.plan.about["lr"])
        for x, y in self.batches(round, place):
            opt.zero_grad()
            F.cross_entropy(self.net(x), y).backward()
            opt.step()

    def batches(self, round: int, place: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the batches of one client of a round (both from 0)."""
        out = []
        for rows in self.plan.rows[round, place]:
            rows = rows[rows >= 0]
            if len(rows):
                at = torch.from_numpy(rows)
                out.append((self.x[at], self.y[at]))
        return out

    @torch.inference_mode()
    def accuracy(self, weights: list[np.ndarray] | None = None) -> float:
        """Return the share of the pooled test set that these weights get right; None: the model as it is."""
        if weights is not None:
            self.load(weights)
        at = torch.from_numpy(self.plan.test).split(64)
        right = sum(int((self.net(self.x[rows]).argmax(1) == self.y[rows]).sum()) for rows in at)
        return right / len(self.plan.test)


def mean(sums: list[np.ndarray] | None, weights: list[np.ndarray], share: float) -> list[np.ndarray]:
    """sums + share * weights, in place after the first."""
    if sums is None:
        return [share * w for w in weights]
    for s, w in zip(sums, weights, strict=True):
        s += share * w
    return sums
