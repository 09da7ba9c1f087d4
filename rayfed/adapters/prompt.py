"""PEFT's prompt and prefix tuning with a ready mask: PEFT's own forward joins a 2-D mask, which training cannot have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rayfed.errors import ConfigError

if TYPE_CHECKING:
    from rayfed.config.schema import Prefix, Prompt


def attach(network: Any, made: Any, adapter: Prompt | Prefix, causal: bool, words: Sequence[int] | None) -> Any:
    """The network in PEFT's wrapper for its config `made`. words: token ids of `adapter.text`.

    ConfigError if the network takes no texts, or, for a prefix, no past keys and values.
    """
    import peft

    name = type(network).__name__
    if network.main_input_name != "input_ids":
        raise ConfigError(f"adapter.kind: {adapter.kind} found, {name} takes no texts; allowed for images: vpt")
    takes = inspect.signature(type(network).forward).parameters
    if adapter.kind == "prefix" and not (causal and "past_key_values" in takes):
        raise ConfigError(
            f"adapter.kind: prefix found, {name} takes no past keys and values (decoders do); allowed in its place: prompt"
        )
    network = peft.get_peft_model(network, made)
    if words is not None:
        network.prompt_encoder["default"].register_buffer("words", torch.tensor(words), persistent=False)
    return network


def redraw(network: Any, adapter: Prompt | Prefix) -> None:
    """Fresh virtual tokens: N(0, 1) as PEFT draws them, word embeddings drawn from the vocabulary, or those of a text."""
    encoder = network.prompt_encoder["default"]
    with torch.no_grad():
        if adapter.kind == "prefix" or adapter.init == "random":
            torch.nn.init.normal_(encoder.embedding.weight)
            return
        table = network.get_base_model().get_input_embeddings().weight
        ids = encoder.words if adapter.init == "text" else torch.randint(len(table), (adapter.tokens,)).to(table.device)
        encoder.embedding.weight.copy_(table[ids])


def run(
    network: Any, adapter: Prompt | Prefix, ids: Tensor, keep: Tensor, mask: Callable[[Tensor], Tensor], **more: Any
) -> tuple[Any, Tensor]:
    """(what the network gives, which of its last hidden states count (B, T + L) or (B, L)) for token ids (B, L).

    mask: (B, 1, n, n) or (B, n) of the kept tokens (B, n), here with the T virtual ones in front. A prompt's hidden states count, as
    sentence encoders pool PEFT's models; a prefix has none.
    """
    tokens = adapter.tokens
    ahead = torch.cat([keep.new_ones(len(keep), tokens), keep], 1)
    base, full = network.get_base_model(), mask(ahead)
    if adapter.kind == "prefix":
        past = network.get_prompt(len(ids))
        full = full[:, :, tokens:] if full.dim() == 4 else full
        return base(input_ids=ids, attention_mask=full, past_key_values=past, **more), keep
    filler = 1 if base.config.pad_token_id == 0 else 0  # any word but padding: positions and pooling go by ids
    ids = torch.cat([ids.new_full((len(ids), tokens), filler), ids], 1)
    with inserted(base.get_input_embeddings(), network.prompt_encoder["default"].embedding.weight):
        return base(input_ids=ids, attention_mask=full, **more), ahead


@contextmanager
def inserted(embeddings: Any, rows: Tensor, at: int = 0) -> Iterator[None]:
    """Within it the layer `embeddings` gives `rows`, (T, d) or one for each text (B, T, d), from place `at` on."""

    def replaced(module: Any, args: Any, out: Tensor) -> Tensor:
        mine = rows.to(out.dtype).expand(len(out), -1, -1)
        return torch.cat([out[:, :at], mine, out[:, at + mine.shape[1] :]], 1)

    hook = embeddings.register_forward_hook(replaced)
    try:
        yield
    finally:
        hook.remove()
