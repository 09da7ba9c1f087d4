"""A pretrained network as a module from one tensor to logits, fit for `torch.func`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Wrapped(nn.Module):
    """Token ids (B, L), -1 on padding, or pixels (B, C, H, W) in [0, 1], to logits (B, classes).

    The mask is built here as a ready 4-D one: transformers' own asks questions of the data that vmap cannot answer.
    """

    def __init__(self, network: Any, about: Any, classes: int, kind: str, head: str, adapter: Any, causal: bool):
        super().__init__()
        self.source = str(about._name_or_path)
        self.network, self.kind, self.pooled, self.adapter = network, kind, head == "mean", adapter
        self.pad, self.causal = int(about.pad_token_id), causal
        if self.pooled:
            self.head = nn.Linear(about.hidden_size, classes)
        self.trained = [n for n, p in self.named_parameters() if p.requires_grad]
        self.head_names = tuple(n for n in self.trained if _is_head(n))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "image":
            out = self.network(pixel_values=x)
            return self.head(out.last_hidden_state.mean(1)) if self.pooled else out.logits
        keep = x >= 0
        more = {"use_cache": False} if self.causal else {}
        out = self.network(input_ids=torch.where(keep, x, self.pad), attention_mask=self.mask(keep, self.dtype), **more)
        if not self.pooled:
            return out.logits
        w = keep.to(out.last_hidden_state.dtype)[..., None]
        return self.head((out.last_hidden_state * w).sum(1) / w.sum(1).clamp(min=1))

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.network.parameters() if p.is_floating_point())

    def mask(self, keep: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, 1, L, L) for tokens `keep` (B, L): see `ready_mask`."""
        return ready_mask(keep, self.causal, dtype)

    def publish(self, params: Any, where: Path) -> None:
        """An adapter in PEFT's format in `where` itself, a whole model in transformers' in `where`/hf.

        An adapter beside a base that has moved (`params` names frozen weights) is merged into it: a whole model.
        """
        if not params.keys() <= set(self.trained):
            merged = copy.deepcopy(self)  # the base itself is shared
            with torch.no_grad():
                for n, p in merged.named_parameters():
                    if n in params:
                        p.copy_(params[n])
            merged.network.merge_and_unload().save_pretrained(where / "hf")
            return
        own = dict(self.named_parameters())
        with torch.no_grad():
            for n, p in params.items():
                own[n].copy_(p)
        if self.adapter.kind not in ("lora", "ia3"):
            self.network.save_pretrained(where / "hf")
            return
        self.network.peft_config["default"].base_model_name_or_path = self.source
        self.network.save_pretrained(where, save_embedding_layers=False)

    def redraw(self) -> None:
        """What is not pretrained, anew from torch's global generator: adapters, then the head."""
        from rayfed import adapters

        adapters.redraw(self.network, self.adapter)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and _is_head(f"{name}.weight") and "original_module" not in name:
                module.reset_parameters()


def _is_head(name: str) -> bool:
    parts = name.split(".")
    return bool({"head", "classifier", "score"} & set(parts)) and "original_module" not in parts


def ready_mask(keep: Tensor, causal: bool, dtype: torch.dtype) -> Tensor:
    """(B, 1, L, L): 0 where attention is allowed, the type's least value elsewhere; every row sees itself."""
    n = keep.shape[1]
    seen = keep[:, None, None, :].expand(-1, 1, n, -1)
    if causal:
        seen = seen & torch.ones(n, n, dtype=torch.bool, device=keep.device).tril()
    seen = seen | torch.eye(n, dtype=torch.bool, device=keep.device)
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def looks_back(network: Any, pad: int) -> bool | None:
    """Whether a text network's tokens see only what came before them; None if a ready 4-D mask does not do what its own does.

    Found by asking: hidden states of two short texts, one of them padded, under the network's own mask and under ours.
    """
    size = int(network.config.get_text_config().vocab_size)
    words = [i for i in range(min(size, 8)) if i != pad]
    if not words:
        return None
    ids = torch.tensor([words * 4, words[::-1] * 4])[:, :6]
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[1, 4:] = False
    ids = torch.where(keep, ids, pad)
    dtype = next(p.dtype for p in network.parameters() if p.is_floating_point())

    def hidden(mask: Tensor) -> Tensor:
        found = network(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        return found[keep].to(torch.float32)

    with torch.no_grad():
        own = hidden(keep.to(torch.int64))
        try:
            apart = [float((hidden(ready_mask(keep, causal, dtype)) - own).abs().max()) for causal in (False, True)]
        except (RuntimeError, ValueError, TypeError, IndexError):  # it takes no 4-D mask
            return None
    return apart[1] < apart[0] if min(apart) <= 1e-4 * float(own.abs().max()) else None
