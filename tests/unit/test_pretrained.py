"""Pretrained transformers with adapters: small ones with random weights, held against plain transformers and PEFT."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from rayfed import adapters, partition, tree
from rayfed.config.schema import LoRA, Named
from rayfed.data import tokens
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from rayfed.models import folder, pretrained
from rayfed.models.start import start_from
from rayfed.models.wrapped import is_causal, sees_ahead
from rayfed.storage import cache
from tests import toy
from tests.tiny import KINDS, changes, make_places, make_tokenizer, pefts


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_places(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))


def resident(c: Any) -> Resident:
    return Resident(c, partition.build(c), start_from(c), "cpu")


def simulate(places: dict[str, Path], executor: str, dtype: str = "float64", **more: Any) -> Any:
    c = toy.config(executor=executor, dtype=dtype, **changes(places, **more))
    split, start, pool = partition.build(c), start_from(c), LocalPool()
    here = Resident(c, split, start, "cpu")
    pool.setup("toy", c, split, start)
    fed = toy.ToyFed(c, split, here.method, here.task, pool, "toy")
    state = fed.method.init(fed.task, 7)
    first = state
    for r in (1, 2):
        fed.begin(r)
        state = fed.method.round(state, fed, fed.task)
        fed.states.commit()
    return first, state, fed


# -- texts ----------------------------------------------------------------------------------------------------------------


def test_texts_are_the_tokenizers_ids_cut_and_padded(places: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    c = toy.config(**changes(places))
    fed = partition.build(c)
    texts = pq.read_table(places["data"] / "train.parquet")["text"].to_pylist()
    want = AutoTokenizer.from_pretrained(places["bert"])(texts, truncation=True, max_length=8)["input_ids"]
    assert max(map(len, want)) == 8 > min(map(len, want))
    x = fed.arrays["x"]
    assert x.dtype == np.int32 and fed.input_shape == (8,) and fed.kind == "text"
    assert [r[r >= 0].tolist() for r in x[:120]] == want
    assert all((r[len(w) :] == -1).all() for r, w in zip(x, want, strict=False))
    assert len(list((cache.cache_folder() / "tokens").iterdir())) == 1


def test_the_cache_is_by_content_and_another_process_does_the_work(places: dict[str, Path]) -> None:
    code = (
        "import sys, json; from rayfed.launch.preflight import load_request; from rayfed import partition;"
        f"c = load_request(json.loads({json.dumps(json.dumps(toy.config(**changes(places)).to_dict()))}));"
        "print(json.dumps([partition.build(c).arrays['x'].tolist(), 'torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=toy.Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    x, torch_came = json.loads(done.stdout)
    assert not torch_came
    (file,) = (cache.cache_folder() / "tokens").iterdir()
    before = file.stat().st_mtime_ns
    assert partition.build(toy.config(**changes(places))).arrays["x"].tolist() == x  # here, from its file
    assert file.stat().st_mtime_ns == before
    longer = toy.merge(changes(places), {"task": {"data": {"length": 5}}})
    assert partition.build(toy.config(**longer)).input_shape == (5,)
    assert len(list((cache.cache_folder() / "tokens").iterdir())) == 2


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "spm.model", "bpe.codes", "dict.txt"])
def test_another_vocabulary_is_another_key(places: dict[str, Path], tmp_path: Path, name: str) -> None:
    def keys() -> int:
        tokens.cached(tmp_path / "m", {"text": ["the w00"]}, "8", "text")
        return len(list((cache.cache_folder() / "tokens").iterdir()))

    shutil.copytree(places["bert"], tmp_path / "m")
    (tmp_path / "m" / name).write_bytes(b"1")
    assert keys() == keys() == 1
    (tmp_path / "m" / name).write_bytes(b"2")
    assert keys() == 2


@pytest.mark.parametrize("library", ["transformers", "tokenizers"])
def test_other_versions_of_the_libraries_are_another_key(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    known = tokens.version
    for there in ("1", "2"):
        monkeypatch.setattr(tokens, "version", lambda n, there=there: there if n == library else known(n))
        tokens.cached(places["bert"], {"text": ["the w00"]}, "8", "text")
    assert len(list((cache.cache_folder() / "tokens").iterdir())) == 2


# -- the same numbers as plain transformers --------------------------------------------------------------------------------


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
def test_which_way_tokens_look_is_found_by_asking(family: str) -> None:
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
    with pytest.raises(ConfigError) as told:
        resident(toy.config(executor="vmap", **changes(there, kind, adapter=adapter)))
    assert str(told.value).startswith("resources.executor: vmap found, task.model: hf:")
    assert "4-D attention mask" in str(told.value) and "allowed: auto, loop, debug" in str(told.value)

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
    """Whichever token that is: GPT-2 pools where the last one lies that is not padding."""
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


# -- training --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", list(KINDS))
def test_loop_is_vmap(places: dict[str, Path], adapter: str) -> None:
    (first, loop, _), (_, vmap, fed) = (simulate(places, e, adapter=KINDS[adapter]) for e in ("loop", "vmap"))
    went = float(tree.norm(tree.sub(loop["model"], first["model"])))
    assert went > 1e-3
    assert float(tree.norm(tree.sub(loop["model"], vmap["model"]))) <= 1e-9 * went
    assert all((loop["model"][n] != first["model"][n]).any() for n in fed.task.head)


def test_a_decoder_too(places: dict[str, Path]) -> None:
    adapter = {"kind": "lora", "rank": 2, "targets": ["c_attn"]}
    (first, loop, _), (_, vmap, _) = (simulate(places, e, kind="gpt2", adapter=adapter) for e in ("loop", "vmap"))
    went = float(tree.norm(tree.sub(loop["model"], first["model"])))
    assert went > 1e-3 and float(tree.norm(tree.sub(loop["model"], vmap["model"]))) <= 1e-9 * went


def test_pooling_with_a_head_of_our_own(places: dict[str, Path]) -> None:
    more = {"task": {"model": {"head": "mean"}}}
    (first, loop, fed), (_, vmap, _) = (simulate(places, e, **more) for e in ("loop", "vmap"))
    assert fed.task.head == ("head.weight", "head.bias")
    went = float(tree.norm(tree.sub(loop["model"], first["model"])))
    assert float(tree.norm(tree.sub(loop["model"], vmap["model"]))) <= 1e-9 * went
    x = fed.federation.arrays["x"][:3]
    out = fed.task._module.network(
        input_ids=torch.as_tensor(np.maximum(x, 0)), attention_mask=torch.as_tensor((x >= 0).astype(np.int64))
    ).last_hidden_state
    keep = torch.as_tensor(x >= 0)[..., None].double()
    with torch.no_grad():
        want = torch.nn.functional.linear(
            (out * keep).sum(1) / keep.sum(1), fed.task._module.head.weight, fed.task._module.head.bias
        )
        torch.testing.assert_close(fed.task._module(torch.as_tensor(x)), want)


def run(places: dict[str, Path], where: Path, **more: Any) -> toy.Ran:
    toy.federation(toy.config(**changes(places)))
    return toy.run_folder("fedavg", where, executor="vmap", **changes(places, **more))


def test_a_run_resumes_to_the_same_bits_and_ends_in_pefts_format(places: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    whole = run(places, tmp_path / "a")
    part = toy.run_folder("fedavg", tmp_path / "b", executor="vmap", stop_after=1, **changes(places))
    assert part.ending.round == 1
    again = toy.run_folder("fedavg", tmp_path / "b", executor="vmap", resume=True, **changes(places))
    assert tree.same(again.state, whole.state) and again.rows == whole.rows

    model = whole.folder.path / "model"
    plain = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(places["bert"], num_labels=3), str(model)
    ).eval()
    res = resident(toy.config(**changes(places)))
    x = res.data["x"][:12]
    with torch.no_grad():
        want = plain(input_ids=x.clamp(min=0).long(), attention_mask=(x >= 0).long()).logits
    torch.testing.assert_close(res.task.apply(whole.state["model"], x), want, rtol=1e-5, atol=1e-6)

    for source in (model, whole.folder.path):  # from the adapter's folder, or from the run's
        task = resident(toy.config(**changes(places, init={"from": str(source)}))).task
        assert tree.same(task.init_params(0), whole.state["model"])
    (model / "model.safetensors").unlink()  # an adapter as PEFT alone would have written it
    task = resident(toy.config(**changes(places, init={"from": str(model)}))).task
    assert tree.same(task.init_params(0), whole.state["model"])
    other = changes(places, init={"from": str(model)}, adapter={"kind": "lora", "rank": 3, "targets": ["query"]})
    with pytest.raises(ConfigError, match=r"adapter.rank: 3 found, .* --set adapter.rank=2 --set adapter.alpha=8"):
        toy.config(**other)


def test_the_models_of_a_run_can_be_called(places: dict[str, Path], tmp_path: Path) -> None:
    from rayfed.api import Run

    ran = run(places, tmp_path / "a")
    found, task = Run(ran.folder.path), resident(toy.config(**changes(places))).task
    x = resident(toy.config(**changes(places))).data["x"][:5]
    want = task.apply(ran.state["model"], x)
    for model in (found.model(), found.model(client=0)):  # fedavg serves everyone the same
        torch.testing.assert_close(model(x), want)
        whole = model.module()
        torch.testing.assert_close(whole(x), want)
        assert len(list(whole.parameters())) > len(model)  # the frozen base is in it


def test_a_whole_model_ends_in_transformers_format(places: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    done = run(places, tmp_path, adapter={"kind": "full"})
    plain = AutoModelForSequenceClassification.from_pretrained(done.folder.path / "model" / "hf").eval()
    res = resident(toy.config(**changes(places, adapter={"kind": "full"})))
    x = res.data["x"][:5]
    with torch.no_grad():
        want = plain(input_ids=x.clamp(min=0).long(), attention_mask=(x >= 0).long()).logits
    torch.testing.assert_close(res.task.apply(done.state["model"], x), want, rtol=1e-5, atol=1e-6)


# -- what is wrong is told before anything starts --------------------------------------------------------------------------


def refused(places: dict[str, Path], **more: Any) -> str:
    with pytest.raises(ConfigError) as told:
        partition.build(toy.config(**changes(places, **more)))
    return str(told.value)


def test_targets_and_ranks(places: dict[str, Path]) -> None:
    assert "adapter.targets: 'qeury' matches no layer (did you mean 'query'?); layers: " in refused(
        places, adapter={"kind": "lora", "targets": ["qeury"]}
    )
    assert "adapter.rank: 17 found, the smallest layer 'query' allows at most 16" in refused(
        places, adapter={"kind": "lora", "rank": 17, "targets": ["query"]}
    )


def test_default_targets_have_a_largest_rank_too(places: dict[str, Path]) -> None:
    told = refused(places, adapter={"kind": "lora", "rank": 25, "targets": None})
    assert told == "adapter.rank: 25 found, the model's layers allow at most 16"
    query = resident(toy.config(**changes(places, adapter={"kind": "head"}))).task._module.network
    query.bert.encoder.layer[1].attention.self.value = torch.nn.Linear(16, 6)
    with pytest.raises(ConfigError, match=r"adapter.rank: 8 found, the smallest layer 'value' allows at most 6"):
        adapters.attach(query, LoRA(kind="lora", rank=8), "SEQ_CLS")  # PEFT's own targets: query and value


@pytest.mark.parametrize(
    ("model", "table"), [("bert", "word_embeddings"), ("bert", "position_embeddings"), ("gpt2", "wte")]
)
def test_no_adapter_on_embedding_layers(places: dict[str, Path], model: str, table: str) -> None:
    """Whatever the method and the ranks: PEFT has A at zero and B at random there, under names of their own."""
    linear = {"bert": "dense, key, query, value", "gpt2": "c_attn, c_fc, c_proj"}[model]
    for kind, more in (("lora", {"rank": 2}), ("lora", {"rank": {1: 0.5, 2: 0.5}}), ("ia3", {"feedforward": []})):
        told = refused(places, kind=model, adapter={"kind": kind, "targets": [table], **more})
        assert told == f"adapter.targets: {table!r} found, an embedding layer; {kind} allows linear layers: {linear}"


def test_an_embedding_layer_of_another_name_is_seen_in_the_network(places: dict[str, Path]) -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lookup, self.query = torch.nn.Embedding(32, 16), torch.nn.Linear(16, 16)

    with pytest.raises(ConfigError, match="'lookup' found, an embedding layer; lora allows linear layers: query"):
        adapters.attach(Odd(), LoRA(kind="lora", rank=2, targets=["lookup"]), "SEQ_CLS")


def test_positions_that_begin_behind_padding_are_fewer(places: dict[str, Path], tmp_path: Path) -> None:
    """RoBERTa's first word has the position after the padding token's id."""
    from transformers import RobertaConfig, RobertaModel

    RobertaModel(
        RobertaConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=8, pad_token_id=0,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    make_tokenizer(tmp_path)
    where = {**places, "bert": tmp_path}
    assert f"task.data.length: 8 found, hf:{tmp_path} takes at most 7 tokens" in refused(where)
    res = resident(toy.config(**changes(where, task={"data": {"length": 7}})))
    assert res.task.input_shape == (7,)
    assert bool(torch.isfinite(res.task.apply(res.task.init_params(0), res.data["x"])).all())


def test_models_and_data_that_do_not_fit(places: dict[str, Path]) -> None:
    assert "task.model: 'mlp' found" in refused(places, task={"model": {"name": "mlp"}}, adapter={"kind": "none"})
    assert "adapter.kind: lora found, task.model: mlp takes none" in refused(places, task={"model": {"name": "mlp"}})
    assert "task.data.length: 25 found" in refused(places, task={"data": {"length": 25}})
    assert "task.model.attention: 'eagre' found (did you mean 'eager'?)" in refused(
        places, task={"model": {"attention": "eagre"}}
    )
    data = places["data"]
    assert "'txet'" in refused(places, task={"data": {"name": f"parquet:{data}", "text": "txet", "length": 4}})


def test_methods_that_make_or_span_inputs_refuse_texts(places: dict[str, Path]) -> None:
    from rayfed.launch.federations import Federations

    for method, says in (
        ("disue", "method.inputs: generator"),
        ("fedftg", "method.inputs: generator"),
        ("pacfl", "token ids"),
    ):
        with pytest.raises(ConfigError, match=says):
            Federations().of(toy.config(method, **changes(places)))
    for spec in ({"name": "disue", "distill": False}, {"name": "disue", "inputs": "probe"}, "fedavg"):
        assert Federations().of(toy.config(spec, **changes(places, federation={"probe": 6}))).kind == "text"


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_disue_on_adapters_learns_from_a_probe(places: dict[str, Path], executor: str) -> None:
    method = {"name": "disue", "clusters": 2, "inputs": "probe", "iterations": 2}
    c = toy.config(method, executor=executor, **changes(places, federation={"probe": 12}))
    split, start, pool = partition.build(c), start_from(c), LocalPool()
    here = Resident(c, split, start, "cpu")
    pool.setup("toy", c, split, start)
    fed = toy.ToyFed(c, split, here.method, here.task, pool, "toy")
    state = fed.method.init(fed.task, 7)
    fed.begin(1)
    after = fed.method.round(state, fed, fed.task)
    assert len(after["experts"]) == 2 and "distill/student" in fed.logged
    assert all(p.shape == after["model"][n].shape for e in after["experts"].values() for n, p in e.items())


def test_texts_of_two_tokenizers_are_two_splits(places: dict[str, Path]) -> None:
    """One split serves runs that agree in it, and texts are kept as ids: a second tokenizer must not get the first one's."""

    def key(**more: Any) -> str:
        return partition.split_key(toy.config(**changes(places, **more)).to_dict())

    assert key() == key(method={"name": "fedprox"}, adapter={"kind": "bias"}, local={"batch_size": 2})
    assert key() != key(kind="gpt2", adapter={"kind": "bias"})
    assert key() != key(adapter={"kind": "prompt", "tokens": 3})  # which leaves fewer places
    assert key() != key(federation={"clients": 5})
    one, other = (toy.config(task={"model": {"name": m}}).to_dict() for m in ("mlp", "linear"))
    assert partition.split_key(one) == partition.split_key(other)


def test_an_incomplete_folder(places: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(places["bert"], broken)
    where = {**places, "bert": broken}
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:-100])
    assert f"is incomplete: {len(whole) - 100} bytes of {len(whole)}" in refused(where)
    (broken / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refused(where)
    about = json.loads((broken / "config.json").read_text())
    (broken / "model.safetensors").write_bytes(whole)
    (broken / "config.json").write_text(json.dumps({**about, "num_hidden_layers": 3}))
    assert "is incomplete: config.json has 3 layers, its safetensors 2" in refused(where)
    (broken / "config.json").write_text(json.dumps(about))
    lacking = load_file(broken / "model.safetensors")
    del lacking["encoder.layer.0.attention.self.query.bias"]
    save_file(lacking, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks bert.encoder.layer.0.attention.self.query.bias \(1 in all\)"):
        resident(toy.config(**changes(where)))
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert "model-1.safetensors of model.safetensors.index.json missing" in refused(where)
    (broken / "model.safetensors.index.json").write_text('{"weight_map": ')
    assert "model.safetensors.index.json is not readable: Expecting value" in refused(where)
    for other in ("{}", "[]", '{"weight_map": null}'):
        (broken / "model.safetensors.index.json").write_text(other)
        assert refused(where).endswith("model.safetensors.index.json has no weight_map")
    (broken / "config.json").unlink()
    assert "holds no config.json" in refused(where)
    shutil.copytree(places["bert"], tmp_path / "mute")
    for file in [*(tmp_path / "mute").glob("*token*")]:
        file.unlink()
    assert "holds no tokenizer (tokenizer.json, " in refused({**places, "bert": tmp_path / "mute"})
    assert folder.shapes(places["bert"])["embeddings.word_embeddings.weight"] == (32, 16)


def test_an_image_models_blocks_are_not_counted(tmp_path: Path) -> None:
    """EfficientNet's config.json counts four for each of its blocks."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    about = EfficientNetConfig(image_size=32, width_coefficient=0.2, depth_coefficient=0.2, hidden_dim=32)
    EfficientNetForImageClassification(about).save_pretrained(tmp_path)
    assert pretrained.check(Named(name=f"hf:{tmp_path}")) == []


@pytest.mark.parametrize("offline", [False, True])
def test_a_cached_model_without_weights_is_completed(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    shutil.copytree(places["bert"], tmp_path / "cached")
    (tmp_path / "cached" / "model.safetensors").unlink()
    asked = []

    def download(name: str, *, local_files_only: bool, allow_patterns: list[str]) -> str:
        asked.append(local_files_only)
        if not local_files_only:
            shutil.copy(places["bert"] / "model.safetensors", tmp_path / "cached")
        return str(tmp_path / "cached")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # the library has read it already
    problems = pretrained.check(Named(name="hf:some/model"))
    if offline:
        assert asked == [True] and "holds no model.safetensors" in problems[0]
    else:
        assert asked == [True, False] and problems == []
        assert folder.locate("hf:some/model") == tmp_path / "cached" and asked[2:] == [True]
