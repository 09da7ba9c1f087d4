"""Networks of transformers as modules: the same numbers as plain transformers and PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rayfed import partition, tree
from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from rayfed.models.start import start_from
from rayfed.models.wrapped import is_causal, sees_ahead
from tests import toy
from tests.pretrained_runs import resident, simulate
from tests.tiny import changes, make_tokenizer, pefts


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_are_those_of_transformers(places: dict[str, Path], kind: str, attention: str) -> None:
    """With its own 2-D mask, and, for a decoder without a padding token, one text at a time without padding."""
    from transformers import AutoModelForSequenceClassification

    model = {"attention": attention}
    c = toy.config(**changes(places, kind, task={"model": model}, adapter={"kind": "full"}))
    res = resident(c)
    params = res.task.init_params(3)
    plain = AutoModelForSequenceClassification.from_pretrained(places[kind], num_labels=3).eval()
    own = dict(plain.named_parameters())
    assert {f"network.{n}" for n in own} == set(params)
    for n, p in own.items():
        if n not in dict(res.task.params_like) and n.split(".")[0] not in ("classifier", "score"):
            assert torch.equal(p, params[f"network.{n}"])
    with torch.no_grad():
        for n, p in own.items():
            p.copy_(params[f"network.{n}"])
    x = res.data["x"][:10]
    got = res.task.apply(params, x)
    for row, logits in zip(x, got, strict=True):
        ids = row[row >= 0].long()[None]
        with torch.no_grad():
            want = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        torch.testing.assert_close(logits, want, rtol=1e-5, atol=1e-6)


FAMILIES = {
    "BertModel": False, "RobertaModel": False, "DistilBertModel": False, "ElectraModel": False, "MPNetModel": False,
    "DebertaV2Model": None, "GPT2Model": True, "GPTNeoXModel": True, "LlamaModel": True, "Qwen2Model": True,
    "Gemma2Model": True, "OPTModel": None, "Olmo2Model": True, "StableLmModel": True, "MambaModel": None,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_whether_tokens_see_later_ones_is_found_by_trying(family: str) -> None:
    import transformers

    cls = getattr(transformers, family)
    small: dict[str, Any] = {
        "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "num_key_value_heads": 2, "head_dim": 8, "embedding_size": 16, "dim": 16, "hidden_dim": 24, "n_heads": 2,
        "n_layers": 2, "max_position_embeddings": 24, "ffn_dim": 24, "word_embed_proj_dim": 16, "pad_token_id": 1,
        "bos_token_id": 2, "eos_token_id": 3, "n_embd": 16, "n_head": 2, "n_layer": 2, "state_size": 4,
    }  # fmt: skip
    known = cls.config_class().to_dict()
    torch.manual_seed(0)
    about = cls.config_class(**{k: v for k, v in small.items() if k in known or k == "num_hidden_layers"})
    about._attn_implementation = "eager"
    network = cls(about).eval()
    assert is_causal(network, 1) is FAMILIES[family]
    assert sees_ahead(network, 1) is (family == "DebertaV2Model" if FAMILIES[family] is None else not FAMILIES[family])


@pytest.mark.parametrize("kind", ["deberta", "opt"])
def test_a_model_without_a_4d_mask_runs_one_client_after_another(
    places: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    from transformers import (
        AutoModelForSequenceClassification,
        DebertaV2Config,
        DebertaV2Model,
        OPTConfig,
        OPTModel,
    )

    size: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    if kind == "deberta":
        more: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "intermediate_size": 24}
        DebertaV2Model(DebertaV2Config(**size, **more)).save_pretrained(tmp_path / kind)
    else:
        more = {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 24, "pad_token_id": 0}
        OPTModel(OPTConfig(**size, **more, bos_token_id=2, eos_token_id=3)).save_pretrained(tmp_path / kind)
    make_tokenizer(tmp_path / kind)
    there = {**places, kind: tmp_path / kind}
    adapter = {"kind": "lora", "rank": 2, "targets": ["query_proj"] if kind == "deberta" else ["q_proj"]}
    with pytest.raises(ConfigError) as caught:
        resident(toy.config(executor="vmap", **changes(there, kind, adapter=adapter)))
    assert str(caught.value).startswith("resources.executor: vmap found, task.model: hf:")
    assert "4-D attention mask" in str(caught.value) and "allowed: auto, loop, debug" in str(caught.value)

    first, state, _ = simulate(there, "loop", kind=kind, adapter=adapter)
    assert all((state["model"][n] != first["model"][n]).any() for n in state["model"])
    ran = toy.run_folder("fedavg", tmp_path / "run", executor="auto", rounds=1, **changes(there, kind, adapter=adapter))
    events = [json.loads(line) for line in (ran.folder.path / "events.jsonl").read_text().splitlines()]
    (event,) = (e for e in events if e["kind"] == "executor")
    assert event["chosen"] == "loop" and "4-D attention mask" in event["seconds"]["why"]

    c = toy.config(executor="loop", **changes(there, kind, adapter={"kind": "full"}))
    res = resident(c)
    params, x = res.task.init_params(3), res.data["x"][:10]
    plain = AutoModelForSequenceClassification.from_pretrained(there[kind], num_labels=3).eval()
    with torch.no_grad():
        for n, p in plain.named_parameters():
            p.copy_(params[f"network.{n}"])
        want = plain(input_ids=x.clamp(min=0).long(), attention_mask=(x >= 0).long()).logits
    torch.testing.assert_close(res.task.apply(params, x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "adapter", [{"kind": "prefix", "tokens": 3}, {"kind": "lora", "rank": 2, "targets": ["q_proj"]}]
)
def test_adapters_of_a_model_without_a_4d_mask_are_pefts(
    places: dict[str, Path], tmp_path: Path, adapter: dict[str, Any]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, OPTConfig, OPTModel

    about = OPTConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24, word_embed_proj_dim=16,
        max_position_embeddings=24, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    OPTModel(about).save_pretrained(tmp_path / "opt")
    make_tokenizer(tmp_path / "opt")
    res = resident(toy.config(**changes({**places, "opt": tmp_path / "opt"}, "opt", adapter=adapter)))
    params = tree.map(lambda p: p + 0.1 * torch.randn_like(p), res.task.init_params(3))
    res.task.publish(params, tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "opt", num_labels=3)
    plain, x = PeftModel.from_pretrained(plain, tmp_path / "out").eval(), res.data["x"][:10]
    with torch.no_grad():
        want = pefts(plain, input_ids=x.clamp(min=0).long(), attention_mask=(x >= 0).long()).logits
    torch.testing.assert_close(res.task.apply(params, x), want, rtol=1e-5, atol=1e-6)


def test_texts_of_a_model_without_padding_end_in_their_last_token(places: dict[str, Path], tmp_path: Path) -> None:
    """Whichever token that is: GPT-2 pools at the last one that is not padding."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    res = resident(toy.config(**changes(places, "gpt2", adapter={"kind": "full"})))
    params = res.task.init_params(3)
    x = torch.tensor([[5, 6, 0, -1], [7, 3, -1, -1], [0, 0, -1, -1], [4, 5, 6, 7]], dtype=torch.int32)
    res.task.publish(params, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path / "hf").pad_token_id is None
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", num_labels=3).eval()
    with torch.no_grad():
        want = torch.cat([plain(input_ids=row[row >= 0].long()[None]).logits for row in x])
    torch.testing.assert_close(res.task.apply(params, x), want, rtol=1e-5, atol=1e-6)
    stacked = {n: p[None].expand(2, *p.shape) for n, p in params.items()}
    together = torch.vmap(res.task.apply, (0, None))(stacked, x)
    torch.testing.assert_close(together[1], want, rtol=1e-5, atol=1e-6)


def test_a_frozen_module_called_head_is_left_alone(places: dict[str, Path], tmp_path: Path) -> None:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(0)
    about = ModernBertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, pad_token_id=0,
        bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, max_position_embeddings=24,
    )  # fmt: skip
    ModernBertForMaskedLM(about).save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    adapter = {"kind": "lora", "rank": 2, "targets": ["Wqkv"]}
    task = resident(toy.config(**changes({**places, "bert": tmp_path}, adapter=adapter))).task
    one, two = task.init_params(1), task.fresh_params(2)
    saved = load_file(tmp_path / "model.safetensors")["head.dense.weight"]
    (name,) = (n for n in task.frozen if n.endswith("head.dense.weight"))
    assert torch.equal(task.frozen[name], saved)
    assert all(not torch.equal(one[n], two[n]) for n in one if n.endswith("classifier.modules_to_save.default.weight"))


def test_the_base_is_not_copied_and_not_trained(places: dict[str, Path]) -> None:
    c = toy.config(**changes(places))
    start = start_from(c)
    assert start is not None
    here = {id(x): x.ctypes.data for x in start["base"]["arrays"].values()}
    task = Resident(c, partition.build(c), start, "cpu").task
    found = {p.data_ptr() for n, p in task._module.named_parameters() if n not in task.params_like}
    assert len(found & set(here.values())) >= len(here) - 1
    assert all("lora_" in n or "classifier" in n for n in task.params_like)
    assert task.head == tuple(n for n in task.params_like if "classifier" in n) and len(task.head) == 2
    per_layer = 2 * (2 * 16 + 16 * 2)  # A and B of query and value
    assert sum(p.numel() for p in task.params_like.values()) == 2 * per_layer + 16 * 3 + 3


def test_fresh_adapters_follow_their_key_and_start_at_the_base(places: dict[str, Path]) -> None:
    res = resident(toy.config(**changes(places)))
    one, two, again = (res.task.fresh_params(k) for k in (1, 2, 1))
    assert tree.same(one, again) and not tree.same(one, two)
    assert all(not p.any() for n, p in one.items() if "lora_B" in n)
    x = res.data["x"][:4]
    head = {n: one[n] for n in res.task.head}
    torch.testing.assert_close(res.task.apply(one, x), res.task.apply({**two, **head}, x))


EMBEDDED: dict[str, Any] = {
    "lora": {"kind": "lora", "rank": 2, "targets": ["query", "value"]},
    "prompt": {"kind": "prompt", "tokens": 3},
    "full": {"kind": "full"},
}


@pytest.mark.parametrize("head", ["auto", "mean"])
@pytest.mark.parametrize("adapter", EMBEDDED)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_texts_own_embeddings_give_its_logits(
    spread_places: dict[str, Path], kind: str, adapter: str, head: str
) -> None:
    """Alone, and for several models at once under vmap with a gradient back to the embeddings."""
    made = EMBEDDED[adapter]
    if adapter == "lora":
        made = {**made, "targets": ["c_attn"] if kind == "gpt2" else ["query", "value"]}
    given = changes(spread_places, kind, adapter=made, task={"model": {"head": head}})
    task = resident(toy.config(dtype="float64", **given)).task
    params = {n: p + 0.1 * torch.randn_like(p) for n, p in task.init_params(3).items()}
    ids = torch.randint(4, 32, (5, 6), dtype=torch.int32)
    table = next((p for n, p in params.items() if "word_embeddings" in n or "wte" in n), task._module.words.weight)
    words = table.detach()[ids.long()]
    want = task.apply(params, ids)
    torch.testing.assert_close(task.apply(params, words), want, rtol=0, atol=1e-12)

    both = tree.stack([params, tree.scale(params, 0.5)])
    got = torch.vmap(task.apply, in_dims=(0, None))(both, words)
    torch.testing.assert_close(got[0], want, rtol=0, atol=1e-12)
    assert not torch.allclose(got[1], want, atol=1e-3)
    slope = torch.func.grad(lambda x: torch.vmap(task.apply, in_dims=(0, None))(both, x).square().sum())(words)
    assert bool((slope.abs().amax((0, 2)) > 0).all())  # every place counts
