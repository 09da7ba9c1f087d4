"""A pretrained network as a module from one tensor to logits, fit for `torch.func`."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayfed import adapters, tree
from rayfed.adapters import inside, prompt, ranks
from rayfed.storage.tree_files import save_tree

NO_TOKEN = -1  # padding of a network that has no token for it


class Wrapped(nn.Module):
    """Token ids (B, L), -1 on padding, or pixels (B, C, H, W) in [0, 1], to logits (B, classes); of a causal language model,
    to those of the next token at each place, (B, L, V). Texts may also be given as what the layer of word embeddings would
    give for them, (B, L, d), none of it padding.

    The mask is built here as a ready 4-D one: transformers' own asks questions of the data that vmap cannot answer. A network
    that takes no such mask gets the plain 2-D one (`alone`: why it runs for one client at a time).

    pad: what ids have on padding; drawn: what the checkpoint lacks, or has in another shape, by the network's own names.
    """

    def __init__(
        self,
        network: Any,
        about: Any,
        classes: int,
        kind: str,
        head: str,
        adapter: Any,
        causal: bool,
        pad: int,
        drawn: set[str],
        alone: str,
    ):
        super().__init__()
        self.source = str(about._name_or_path)
        self.vocabulary = int(getattr(about, "vocab_size", 0) or 0)
        self.network, self.kind, self.pooled, self.adapter = network, kind, head == "mean", adapter
        self.pad, self.causal = pad, causal
        self.vectorize = alone or True
        self.pixels: nn.Module = nn.Identity()
        if self.pooled:
            self.head = nn.Linear(about.hidden_size, classes)
        self.trained = [n for n, p in self.named_parameters() if p.requires_grad]
        self.head_names = tuple(n for n in self.trained if is_head(n))
        plain = {n: n.replace(".modules_to_save.default.", ".") for n in self.head_names}  # PEFT's copies
        self.kept = {
            n for n, p in plain.items() if n.startswith("network.") and not p.endswith(tuple(f".{d}" for d in drawn))
        }

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "image":
            out = self.network(pixel_values=self.pixels(x))
            return self.head(out.last_hidden_state.mean(1)) if self.pooled else out.logits
        if x.is_floating_point():
            ahead = self.adapter.tokens if self.adapter.kind == "prompt" else 0
            word = 1 if self.pad == 0 else 0  # any but padding: positions and pooling go by ids
            with prompt.inserted(self.words, x, ahead):
                return self._read(torch.full(x.shape[:2], word, device=x.device))
        return self._read(x)

    @property
    def _inner(self) -> Any:
        """Return transformers' own network, within PEFT's."""
        return self.network.get_base_model() if hasattr(self.network, "get_base_model") else self.network

    @property
    def encoder(self) -> nn.Module:
        """Return what gives the last layer's states (B, L, d) first: the network without its head."""
        found: nn.Module = self._inner.base_model
        return found

    @property
    def words(self) -> nn.Module:
        """Return the layer of word embeddings."""
        found: nn.Module = self._inner.get_input_embeddings()
        return found

    def spread(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation over the vocabulary of what the layer of word embeddings gives, (d,) each."""
        layer = self.words
        weight = next(layer.parameters())
        given = [
            layer(ids).to(torch.float64) for ids in torch.arange(self.vocabulary, device=weight.device).split(4096)
        ]
        mean = sum(g.sum(0) for g in given) / self.vocabulary
        square = sum((g - mean).square().sum(0) for g in given) / self.vocabulary
        return mean, square.sqrt()

    def _read(self, x: Tensor) -> Any:
        keep = x >= 0
        more = {"use_cache": False} if self.causal else {}
        ids = torch.where(keep, x, self.pad)
        if self.adapter.kind in ("prompt", "prefix"):
            out, keep = prompt.forward(
                self.network, self.adapter, ids, keep, lambda k: self.mask(k, self.dtype), **more
            )
        else:
            out = self.network(input_ids=ids, attention_mask=self.mask(keep, self.dtype), **more)
        if not self.pooled:
            return out.logits if self.kind == "text" else out.logits[:, -x.shape[1] :]  # of the text, not of a prompt
        w = keep.to(out.last_hidden_state.dtype)[..., None]
        return self.head((out.last_hidden_state * w).sum(1) / w.sum(1).clamp(min=1))

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.network.parameters() if p.is_floating_point())

    def mask(self, keep: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (B, 1, L, L) for tokens `keep` (B, L), see `ready_mask`; `keep` as numbers where the network takes no such mask."""
        if self.vectorize is not True:
            return keep.to(torch.int64)
        return ready_mask(keep, self.causal, dtype)

    def publish(self, params: Any, where: Path, rank: int | None = None) -> None:
        """Write an adapter in PEFT's format into `where` itself, one that PEFT has no format of into `where`/adapter (see
        `rayfed.adapters.inside`), a whole model in transformers' in `where`/hf.

        rank: of a LoRA whose factors are zero beyond it and written without that; its alpha is the adapter's, for that rank.
        An adapter whose base has moved (`params` names frozen weights) is merged into it: a whole model; what cannot be merged, a prompt or
        a module inside, is written with what has moved into `where`/adapter.
        The classifier of `head: mean` is no part of the network: it has its own file, `where`/head.safetensors.
        """
        head = {n: p.detach() for n, p in params.items() if n.startswith("head.")}
        if head and self.adapter.kind not in adapters.INSIDE:
            where.mkdir(parents=True, exist_ok=True)
            save_tree(where, "head", tree.to_numpy(head))
        moved = not params.keys() <= set(self.trained)
        if moved and self.adapter.kind not in ("prompt", "prefix", *adapters.INSIDE):
            merged = copy.deepcopy(self)  # the base itself is shared
            with torch.no_grad():
                for n, p in merged.named_parameters():
                    if n in params:
                        p.copy_(params[n])
            network = merged.network
            _save_whole(network.merge_and_unload() if self.adapter.kind in adapters.IN_PEFT else network, where / "hf")
            return
        if moved or self.adapter.kind in adapters.INSIDE:
            inside.save(self.adapter, self.source, params, where / "adapter")
            return
        own = dict(self.named_parameters())
        held = {n: own[n].data for n in params}
        try:
            # Not into what is there, which may be shared, and is where fresh parameters start.
            for n, p in params.items():
                own[n].data = torch.empty_like(held[n]).copy_(p)
            self._write(where, rank)
        finally:
            for n, before in held.items():
                own[n].data = before

    def merge(self, params: Any, where: Path) -> Any:
        """Write the network with the trained parameters in it, an adapter merged into the weights, in transformers' format into `where`,
        and return that network, in float32; this module is of no use any more.

        The classifier of `head: mean` goes into `where`/head.safetensors.
        """
        self.to(torch.float32).load_state_dict(dict(params), strict=False)
        network = self.network
        if hasattr(network, "merge_and_unload"):
            network = network.merge_and_unload()
        _save_whole(network, where)
        if head := {n: p.detach() for n, p in params.items() if n.startswith("head.")}:
            save_tree(where, "head", tree.to_numpy(head))
        return network

    def _write(self, where: Path, rank: int | None) -> None:
        if self.adapter.kind not in adapters.IN_PEFT:
            _save_whole(self.network, where / "hf")
            return
        about, more = self.network.peft_config["default"], {}
        about.base_model_name_or_path = self.source
        if rank is not None and self.adapter.kind == "lora":
            alpha = self.adapter.strength(rank)
            self.network.peft_config["default"] = dataclasses.replace(about, r=rank, lora_alpha=alpha)
            cut = ranks.trim(dict(self.network.state_dict()), rank)
            more = {"state_dict": {n: x.contiguous() for n, x in cut.items()}}  # not every safetensors takes slices
        try:
            self.network.save_pretrained(where, save_embedding_layers=False, **more)
        finally:
            self.network.peft_config["default"] = about
        _sort_sets(where / "adapter_config.json", about)

    def redraw(self, everything: bool = False) -> None:
        """Draw what is not pretrained anew from torch's global generator: adapters, then the head; everything: a head that came with
        the checkpoint too, whose values are overwritten."""
        adapters.redraw(self.network, self.adapter)
        drawn = {n for n in self.head_names if everything or n not in self.kept}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and f"{name}.weight" in drawn:
                module.reset_parameters()


def _sort_sets(file: Path, about: Any) -> None:
    """Write what PEFT holds as sets in one order, so that equal runs leave equal files: a set of strings has its process's."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content |= {n: sorted(v) for n, v in vars(about).items() if isinstance(v, set)}
    file.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def is_head(name: str) -> bool:
    """Return whether a parameter is of the classifier."""
    parts = name.split(".")
    return bool({"head", *inside.HEADS} & set(parts)) and "original_module" not in parts


def without_padding(network: Any) -> int:
    """Return the network's padding token; one that has none is made to take NO_TOKEN, by which it finds each text's last token.

    Any token of the vocabulary in its place could also be a text's last.
    """
    about = network.config.get_text_config()
    pad = getattr(about, "pad_token_id", None)
    if pad is None or pad < 0:
        about.pad_token_id = pad = NO_TOKEN
        network.get_input_embeddings().register_forward_pre_hook(_within)
    return int(pad)


def _within(embeddings: nn.Module, args: Any) -> Any:
    return args[0].clamp(min=0), *args[1:]


def _save_whole(network: Any, where: Path) -> None:
    """Write the network in transformers' format; a padding token that is none is left out."""
    about = network.config.get_text_config()
    pad = getattr(about, "pad_token_id", None)
    if pad == NO_TOKEN:
        about.pad_token_id = None
    try:
        network.save_pretrained(where)
    finally:
        if pad == NO_TOKEN:
            about.pad_token_id = pad


def ready_mask(keep: Tensor, causal: bool, dtype: torch.dtype) -> Tensor:
    """Return (B, 1, L, L): 0 where attention is allowed, the type's least value elsewhere; every row sees itself."""
    n = keep.shape[1]
    seen = keep[:, None, None, :].expand(-1, 1, n, -1)
    if causal:
        seen = seen & torch.ones(n, n, dtype=torch.bool, device=keep.device).tril()
    seen = seen | torch.eye(n, dtype=torch.bool, device=keep.device)
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def is_causal(network: Any, pad: int) -> bool | None:
    """Return whether a text network's tokens see only what came before them; None if a ready 4-D mask does not do what its own does.

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
    rounding = max(1e-4, 4 * torch.finfo(dtype).eps)
    return apart[1] < apart[0] if min(apart) <= rounding * float(own.abs().max()) else None


def sees_ahead(network: Any, pad: int) -> bool:
    """Return whether what comes after a token changes its hidden state, under the network's own mask."""
    size = int(network.config.get_text_config().vocab_size)
    one, other, *_ = [i for i in range(min(size, 8)) if i != pad]
    ids = torch.tensor([[one, other, one, other], [one, other, one, one]])
    with torch.no_grad():
        seen = network(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states[-1]
    return not torch.allclose(seen[0, :3], seen[1, :3], rtol=1e-4, atol=1e-4 * float(seen.abs().max()))
