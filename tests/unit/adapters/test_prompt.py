"""Prompt and prefix tuning."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.unit.adapters.kinds import PREFIX, TEXT, refused, resident


def test_a_prompt_starts_where_it_is_said_to(places: dict[str, Path]) -> None:
    from peft import PromptEmbedding, PromptTuningConfig

    tasks = {k: resident(places, "bert", TEXT[k]).task for k in ("prompt", "vocab", "words")}
    name = "network.prompt_encoder.default.embedding.weight"
    got = {k: t.fresh_params(3)[name] for k, t in tasks.items()}
    words = tasks["words"]._module.network.get_base_model().get_input_embeddings()
    table = words.weight.detach()
    assert 0.5 < float(got["prompt"].std()) < 2 and not torch.equal(
        got["prompt"], tasks["prompt"].fresh_params(4)[name]
    )
    assert all((table == p).all(1).any() for p in got["vocab"])
    theirs = PromptEmbedding(
        PromptTuningConfig(
            task_type="SEQ_CLS", num_virtual_tokens=8, token_dim=16, num_transformer_submodules=1, prompt_tuning_init="TEXT",
            prompt_tuning_init_text="the w00 w11", tokenizer_name_or_path=str(places["bert"]),
        ),
        words,
    ).embedding.weight  # fmt: skip
    assert torch.equal(got["words"], theirs.detach())


def reads(name: str) -> Callable[[Any], Any]:
    """Puts before a decoder's forward pass one whose argument for past keys and values is `name`; `**kwargs` swallows others."""

    def around(inner: Any) -> Any:
        (own,) = {"cache", "past_key_values"} & set(inspect.signature(inner).parameters)

        def older(self: Any, input_ids: Any = None, past_key_values: Any = None, **more: Any) -> Any:
            more.pop("cache", None)
            return inner(self, input_ids, **{own: past_key_values}, **more)

        def newer(self: Any, input_ids: Any = None, cache: Any = None, **more: Any) -> Any:
            more.pop("past_key_values", None)
            return inner(self, input_ids, **{own: cache}, **more)

        def neither(
            self: Any, input_ids: Any = None, past_key_values: Any = None, cache: Any = None, **more: Any
        ) -> Any:
            return inner(self, input_ids, **more)

        return {"past_key_values": older, "cache": newer, "": neither}[name]

    return around


def test_a_prefix_is_read_whatever_the_network_calls_it(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = transformers.GPT2ForSequenceClassification
    plain = resident(places, "gpt2", PREFIX)
    params, x, inner = plain.task.init_params(3), plain.data["x"][:10], network.forward
    want = plain.task.apply(params, x)
    virtual = "network.prompt_encoder.default.embedding.weight"
    for name in ("past_key_values", "cache"):
        monkeypatch.setattr(network, "forward", reads(name)(inner))
        task = resident(places, "gpt2", PREFIX).task
        assert torch.equal(task.apply(params, x), want)
        other = task.apply({**params, virtual: params[virtual] + 1}, x)
        assert float((other - want).abs().max()) > 1e-4
    monkeypatch.setattr(network, "forward", reads("")(inner))  # it has the names and does nothing with them
    assert "takes no past keys and values" in refused(places, "gpt2", PREFIX)


def test_a_prefix_is_not_computed_twice(places: dict[str, Path]) -> None:
    more = {"task": {"model": {"checkpointing": True}}}
    assert "task.model.checkpointing: true found" in refused(places, "gpt2", PREFIX, **more)


def test_virtual_tokens_take_places_of_the_text(places: dict[str, Path]) -> None:
    long = {"task": {"data": {"length": 22}}}
    said = refused(places, "bert", {"kind": "prompt", "tokens": 3}, **long)
    assert "task.data.length: 22 found" in said and "takes at most 21 tokens next to 3 of the adapter" in said
    assert "adapter.tokens: 24 found" in refused(places, "bert", {"kind": "prompt", "tokens": 24})
    assert resident(places, "bert", {"kind": "prompt", "tokens": 2}, **long).task.input_shape[0] <= 22
