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
    """Return the network in PEFT's wrapper for its config `made`. words: token ids of `adapter.text`.

    ConfigError if the network takes no texts, or, for a prefix, no past keys and values.
    """
    import peft

    name = type(network).__name__
    if network.main_input_name != "input_ids":
        raise ConfigError(f"adapter.kind: {adapter.kind} found, {name} takes no texts; allowed for images: vpt")
    refused = ConfigError(
        f"adapter.kind: prefix found, {name} takes no past keys and values (decoders do); allowed in its place: prompt"
    )
    if adapter.kind == "prefix" and not causal:
        raise refused
    network = peft.get_peft_model(network, made)
    if adapter.kind == "prefix":
        network.prompt_encoder["default"].past = past_argument(network)
        if network.prompt_encoder["default"].past is None:
            raise refused
    if words is not None:
        network.prompt_encoder["default"].register_buffer("words", torch.tensor(words), persistent=False)
    return network


def past_argument(network: Any) -> str | None:
    """Return the argument in which a decoder in PEFT's wrapper reads past keys and values; None if it reads none.

    Releases of transformers spell it differently, and `**kwargs` swallows any name: with the right one, and no other, what
    the network gives has a gradient in the virtual tokens.
    """
    base, virtual = network.get_base_model(), network.prompt_encoder["default"].embedding.weight
    filler = 1 if base.config.pad_token_id == 0 else 0
    ids = torch.full((1, 2), filler, device=virtual.device)
    length = network.active_peft_config.num_virtual_tokens + ids.shape[1]
    given = {"input_ids": ids, "attention_mask": ids.new_ones(1, length), "use_cache": False}
    for name, about in inspect.signature(type(base).forward).parameters.items():
        if name in given or about.default is not None:
            continue
        try:
            with torch.enable_grad():
                out = base(**given, **{name: network.get_prompt(1)})[0]
                (found,) = torch.autograd.grad(out.sum(), virtual, allow_unused=True)
        except Exception:  # whatever an argument says that is handed a cache and wants none
            continue
        if found is not None:
            return name
    return None


def redraw(network: Any, adapter: Prompt | Prefix) -> None:
    """Draw virtual tokens anew: N(0, 1) as PEFT draws them, word embeddings drawn from the vocabulary, or those of a text."""
    encoder = network.prompt_encoder["default"]
    with torch.no_grad():
        if adapter.kind == "prefix" or adapter.init == "random":
            torch.nn.init.normal_(encoder.embedding.weight)
            return
        table = network.get_base_model().get_input_embeddings().weight
        ids = encoder.words if adapter.init == "text" else torch.randint(len(table), (adapter.tokens,)).to(table.device)
        encoder.embedding.weight.copy_(table[ids])


def forward(
    network: Any, adapter: Prompt | Prefix, ids: Tensor, keep: Tensor, mask: Callable[[Tensor], Tensor], **more: Any
) -> tuple[Any, Tensor]:
    """Return (what the network gives, which of its last hidden states count (B, T + L) or (B, L)) for token ids (B, L).

    mask: (B, 1, n, n) or (B, n) of the kept tokens (B, n), here with the T virtual ones in front. A prompt's hidden states count, as
    sentence encoders pool PEFT's models; a prefix has none.
    """
    tokens = adapter.tokens
    ahead = torch.cat([keep.new_ones(len(keep), tokens), keep], 1)
    base, full = network.get_base_model(), mask(ahead)
    if adapter.kind == "prefix":
        past = network.get_prompt(len(ids))
        full = full[:, :, tokens:] if full.dim() == 4 else full
        more[network.prompt_encoder["default"].past] = past
        return base(input_ids=ids, attention_mask=full, **more), keep
    filler = 1 if base.config.pad_token_id == 0 else 0  # any word but padding: positions and pooling go by ids
    ids = torch.cat([ids.new_full((len(ids), tokens), filler), ids], 1)
    with inserted(base.get_input_embeddings(), network.prompt_encoder["default"].embedding.weight):
        return base(input_ids=ids, attention_mask=full, **more), ahead


@contextmanager
def inserted(embeddings: Any, rows: Tensor, at: int = 0) -> Iterator[None]:
    """Let the layer `embeddings` give `rows`, (T, d) or one for each text (B, T, d), from place `at` on."""

    def replaced(module: Any, args: Any, out: Tensor) -> Tensor:
        mine = rows.to(out.dtype).expand(len(out), -1, -1)
        return torch.cat([out[:, :at], mine, out[:, at + mine.shape[1] :]], 1)

    hook = embeddings.register_forward_hook(replaced)
    try:
        yield
    finally:
        hook.remove()
