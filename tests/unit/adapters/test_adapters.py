"""Adapters of every kind on tiny transformers: trained, saved, and refused where a model cannot have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from rayfed import adapters, partition, tree
from rayfed.config.schema import LoRA
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from rayfed.models.start import start_from
from tests import pretrained_runs, toy
from tests.tiny import KINDS, changes, make_vit, pefts
from tests.unit.adapters.kinds import IMAGE, PREFIX, TEXT, refused, resident, run, spec

CASES = [
    *(("bert", k, a) for k, a in TEXT.items()),
    *(("gpt2", k, TEXT[k]) for k in ("prompt", "bottleneck", "ssf")),
    ("gpt2", "prefix", PREFIX),
    *(("vit", k, a) for k, a in IMAGE.items()),
]


MEAN = [
    c
    for c in CASES
    if (c[0], c[1]) in {("bert", "prompt"), ("gpt2", "prefix"), ("gpt2", "prompt"), ("vit", "vpt"), ("vit", "ssf")}
]


def simulate(c: Any, rounds: int = 2) -> Any:
    """(state before, state after, the federation)."""
    split, start, pool = toy.federation(c), start_from(c), LocalPool()
    here = Resident(c, split, start, "cpu")
    pool.setup("toy", c, split, start)
    fed = toy.ToyFed(c, split, here.method, here.task, pool, "toy")
    first = state = fed.method.init(fed.task, 7)
    for r in range(1, rounds + 1):
        fed.begin(r)
        state = fed.method.round(state, fed, fed.task)
        fed.states.commit()
    return first, state, fed


@pytest.mark.parametrize(
    ("model", "adapter", "head"),
    [pytest.param(m, a, h, id=f"{m}-{k}-{h}") for h, cases in (("auto", CASES), ("mean", MEAN)) for m, k, a in cases],
)
def test_loop_is_vmap_only_what_is_declared_travels_and_the_base_stays(
    places: dict[str, Path], model: str, adapter: dict[str, Any], head: str
) -> None:
    made = spec(places, model, adapter, head)
    (first, loop, fed), (_, vmap, _) = (
        simulate(toy.config(executor=e, dtype="float64", **made), 1) for e in ("loop", "vmap")
    )
    went = float(tree.norm(tree.sub(loop["model"], first["model"])))
    assert went > 1e-3
    assert float(tree.norm(tree.sub(loop["model"], vmap["model"]))) <= 1e-9 * went
    still = [n for n, p in loop["model"].items() if torch.equal(p, first["model"][n])]
    assert all("pooler" in n for n in still)  # AutoModel's, which mean pooling does not use
    assert set(loop["model"]) == set(fed.task.params_like)
    size = sum(p.numel() for p in fed.task.params_like.values())
    assert fed.meter["bytes/up"] == 8 * (size + 1) * 3  # float64, three clients a round; one number is n_i
    fresh = resident(places, model, adapter, head, task={"dtype": "float64"}).task.frozen
    assert all(torch.equal(p, fresh[n]) for n, p in fed.task.frozen.items()) and len(fresh) == len(fed.task.frozen)
    if adapter["kind"] != "full":
        assert size < sum(p.numel() for p in fresh.values()) / 2


@pytest.mark.parametrize("adapter", ["lora", "bias", "vpt", "full"])
def test_a_vision_transformer_learns(places: dict[str, Path], adapter: str) -> None:
    local = {"steps": 15, "epochs": None, "batch_size": 16}
    made = spec(places, "vit", IMAGE[adapter], local=local, federation={"per_round": 6})
    first, state, fed = simulate(toy.config(executor="vmap", **made), rounds=2)
    pool = np.asarray(fed.federation.pooled_test)
    batch = {k: torch.as_tensor(np.asarray(fed.federation.arrays[k])[pool]) for k in ("x", "y")}
    before, after = (fed.task.metrics(s["model"], batch)["loss"].mean() for s in (first, state))
    assert after < 0.95 * before


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("bert", TEXT["bottleneck"]), ("bert", TEXT["ssf"]), ("bert", KINDS["ia3"]), ("bert", KINDS["lora"]),
        ("gpt2", TEXT["bottleneck"]), ("gpt2", TEXT["ssf"]), ("vit", IMAGE["bottleneck"]), ("vit", IMAGE["ssf"]),
        ("vit", IMAGE["ia3"]), ("vit", IMAGE["lora"]),
    ],
)  # fmt: skip
def test_at_the_start_the_frozen_model_is_as_it_was(
    places: dict[str, Path], model: str, adapter: dict[str, Any]
) -> None:
    ours, plain = resident(places, model, adapter), resident(places, model, {"kind": "head"})
    params, x = ours.task.fresh_params(5), ours.data["x"][:6]
    heads = dict(zip(sorted(plain.task.head), (params[n] for n in sorted(ours.task.head)), strict=True))
    torch.testing.assert_close(ours.task.apply(params, x), plain.task.apply(heads, x), rtol=0, atol=1e-6)
    moved = {n: p if n in ours.task.head else p + torch.randn_like(p) for n, p in params.items()}
    assert not torch.allclose(ours.task.apply(moved, x), plain.task.apply(heads, x), atol=1e-3)


@pytest.mark.parametrize("head", ["auto", "mean"])
@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("bert", TEXT["prompt"]),
        ("gpt2", TEXT["prompt"]),
        ("gpt2", PREFIX),
        ("bert", KINDS["ia3"]),
        ("vit", IMAGE["lora"]),
    ],
    ids=["bert-prompt", "gpt2-prompt", "gpt2-prefix", "bert-ia3", "vit-lora"],
)
def test_plain_peft_loads_what_a_run_leaves_and_it_goes_on_from_there(
    places: dict[str, Path], tmp_path: Path, model: str, adapter: Any, head: str
) -> None:
    """A decoder's texts go to PEFT one at a time: given embeddings, transformers pools the last place, padding or not."""
    import transformers
    from peft import PeftModel

    done = run(places, tmp_path, model, adapter, head)
    published, params = done.folder.path / "model", done.state["model"]
    kinds = {"auto": "AutoModelForImageClassification" if model == "vit" else "AutoModelForSequenceClassification"}
    auto, more = getattr(transformers, kinds.get(head, "AutoModel")), {}
    if head == "auto" and model != "vit":
        more = {"num_labels": 3, "pad_token_id": 0}
    plain = PeftModel.from_pretrained(auto.from_pretrained(places[model], **more), str(published)).eval()
    res = resident(places, model, adapter, head)
    x, want = res.data["x"][:12], []
    for row in x.split(12 if model != "gpt2" else 1):
        row = row if model != "gpt2" else row[:, : int((row >= 0).sum())]
        keep = row >= 0
        ids = {"input_ids": row.clamp(min=0).long(), "attention_mask": keep.long()}
        with torch.no_grad():
            out = pefts(plain, **({"pixel_values": res.task._module.pixels(row)} if model == "vit" else ids))
            if head == "auto":
                want.append(out.logits)
                continue
            h = out.last_hidden_state
            keep = torch.ones(h.shape[:2], dtype=torch.bool) if model == "vit" else keep
            w = torch.cat([keep.new_ones(len(h), h.shape[1] - keep.shape[1]), keep], 1)[..., None].float()
            pooled = (h * w).sum(1) / w.sum(1)
            want.append(torch.nn.functional.linear(pooled, params["head.weight"], params["head.bias"]))
    torch.testing.assert_close(res.task.apply(params, x), torch.cat(want), rtol=1e-5, atol=1e-5)

    again = resident(places, model, adapter, head, init={"from": str(done.folder.path)}).task
    assert tree.same(again.init_params(0), params)
    (published / "model.safetensors").unlink()  # an adapter as PEFT alone would have written it
    task = resident(places, model, adapter, head, init={"from": str(published)}).task
    assert tree.same(task.init_params(0), params)


def test_bias_and_head_of_an_image_model_end_in_transformers_format(places: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    for kind in ("bias", "head"):
        done = run(places, tmp_path / kind, "vit", IMAGE[kind])
        plain = AutoModelForImageClassification.from_pretrained(done.folder.path / "model" / "hf").eval()
        res = resident(places, "vit", IMAGE[kind])
        x = res.data["x"][:5]
        with torch.no_grad():
            want = plain(pixel_values=(x - 0.5) / 0.5).logits
        torch.testing.assert_close(res.task.apply(done.state["model"], x), want, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_with_a_classifier_of_other_classes_gets_a_new_one(
    places: dict[str, Path], tmp_path: Path
) -> None:
    make_vit(tmp_path / "vit", num_labels=7)
    res = resident({**places, "vit": tmp_path / "vit"}, "vit", IMAGE["head"])
    assert res.task.params_like["network.classifier.weight"].shape == (10, 16)
    assert tree.same(res.task.init_params(3), res.task.fresh_params(3))
    assert not tree.same(res.task.init_params(3), res.task.init_params(4))
    about = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps({**about, "intermediate_size": 20}))
    with pytest.raises(ConfigError, match="has not the shape that its config"):
        resident({**places, "vit": tmp_path / "vit"}, "vit", IMAGE["head"])


@pytest.mark.parametrize("adapter", ["lora", "head", "bottleneck"])
def test_a_classifier_of_these_classes_stays(places: dict[str, Path], adapter: str) -> None:
    from safetensors.torch import load_file

    c = toy.config(**spec(places, "vit", IMAGE[adapter]))
    start, kept = start_from(c), load_file(places["vit"] / "model.safetensors")["classifier.weight"]
    assert start is not None
    task = Resident(c, partition.build(c), start, "cpu").task
    (name,) = (n for n in task.head if n.endswith("weight"))
    assert all(torch.equal(task.init_params(k)[name], kept) for k in (1, 2))
    fresh = task.fresh_params(1)  # a further expert's
    assert not torch.equal(fresh[name], kept) and tree.same(fresh, task.fresh_params(1))
    assert torch.equal(task.init_params(1)[name], kept)
    assert np.array_equal(start["base"]["arrays"]["classifier.weight"], kept.numpy())  # other tasks may share it


def test_what_is_published_leaves_the_start_as_it_was(places: dict[str, Path], tmp_path: Path) -> None:
    for adapter in ("head", "lora", "full"):
        task = resident(places, "vit", IMAGE[adapter]).task
        before = task.init_params(1)
        task.publish(tree.map(lambda p: p + 1, before), tmp_path / adapter)
        assert tree.same(task.init_params(1), before)


def test_adapters_that_a_model_cannot_have(places: dict[str, Path]) -> None:
    assert "takes no past keys and values (decoders do); allowed in its place: prompt" in refused(
        places, "bert", PREFIX
    )
    assert "a bert takes no images; allowed for texts: prompt, prefix" in refused(places, "bert", IMAGE["vpt"])
    assert "a vit takes no texts; allowed for images: vpt" in refused(places, "vit", TEXT["prompt"])
    assert "'fc3' matches no module (did you mean 'fc2'?)" in refused(
        places, "vit", {**IMAGE["bottleneck"], "targets": ["fc3"]}
    )
    assert "'qproj' matches no layer (did you mean 'q_proj'?)" in refused(
        places, "vit", {**IMAGE["lora"], "targets": ["qproj"]}
    )
    assert "'outptu' matches no module (did you mean 'output'?)" in refused(
        places, "bert", {"kind": "ssf", "targets": ["outptu"]}
    )


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("bert", TEXT["ssf"]),
        ("bert", TEXT["bottleneck"]),
        ("vit", IMAGE["vpt"]),
        ("gpt2", PREFIX),
        ("bert", TEXT["prompt"]),
    ],
    ids=["ssf", "bottleneck", "vpt", "prefix", "prompt"],
)
def test_half_precision_and_checkpointing_change_little(places: dict[str, Path], model: str, adapter: Any) -> None:
    def trained(**more: Any) -> Any:
        sgd = {"optimizer": {"name": "sgd", "lr": 0.1}}  # Adam would make much of little gradients' noise
        first, state, _ = simulate(toy.config(executor="loop", **spec(places, model, adapter, **more, local=sgd)), 1)
        return tree.sub(state["model"], first["model"])

    plain, half = trained(), trained(task={"dtype": "bf16"})
    assert float(tree.norm(tree.sub(plain, half))) < 0.25 * float(tree.norm(plain))
    if adapter["kind"] != "prefix":
        again = trained(task={"model": {"checkpointing": True}})
        assert float(tree.norm(tree.sub(plain, again))) < 1e-4 * float(tree.norm(plain))


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ({"kind": "prompt", "tokens": 0}, "adapter.tokens"),
        ({"kind": "prompt", "init": "text"}, "adapter.text: None found, init text"),
        ({"kind": "prompt", "text": "a"}, "adapter.text: 'a' found, init random"),
        ({"kind": "prompt", "init": "vocabulary"}, "adapter.init: 'vocabulary' found (did you mean 'vocab'?)"),
        ({"kind": "bottleneck", "sise": 4}, "adapter.sise: unknown key of kind bottleneck (did you mean 'size'?)"),
        ({"kind": "vtp"}, "adapter.kind: 'vtp' found (did you mean 'vpt'?)"),
    ],
)
def test_settings(places: dict[str, Path], adapter: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toy.config(**spec(places, "bert", adapter))
    assert says in str(caught.value)


def test_the_claim_about_adapters_says_how_its_model_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayfed.launch import claims

    file = claims.benchmarks_folder() / "claims" / "adapters_compared.yaml"
    monkeypatch.setenv(claims.MODELS, str(tmp_path))
    problem = claims.missing_data(file)
    assert (
        problem is not None
        and problem.endswith("to make it: python benchmarks/pretrain_vit.py")
        and str(tmp_path) in problem
    )
    make_vit(tmp_path / "tiny-vit-digits", hidden_size=64, num_attention_heads=4)
    assert claims.missing_data(file) is None
    assert {c.adapter.kind for c in claims.read_claim(file).study.arms.values()} == {
        "full",
        "head",
        "bias",
        "bottleneck",
        "vpt",
        "lora",
    }


def test_all_parameters_are_fedavg_to_the_bit(places: dict[str, Path]) -> None:
    """FedPEFT's variant that trains everything, against the same run without an adapter."""
    more = {"local": {"optimizer": {"name": "sgd", "lr": 0.1}}}
    full, plain = (simulate(toy.config(**spec(places, "bert", {"kind": k}, **more))) for k in ("full", "none"))
    assert tree.same(full[1], plain[1]) and not tree.same(full[0], full[1])
    network = transformers.AutoModelForSequenceClassification.from_pretrained(places["bert"], num_labels=3)
    assert set(full[1]["model"]) == {f"network.{n}" for n, _ in network.named_parameters()}


def test_targets_and_ranks(places: dict[str, Path]) -> None:
    assert "adapter.targets: 'qeury' matches no layer (did you mean 'query'?); layers: " in pretrained_runs.refused(
        places, adapter={"kind": "lora", "targets": ["qeury"]}
    )
    assert "adapter.rank: 17 found, the smallest layer 'query' allows at most 16" in pretrained_runs.refused(
        places, adapter={"kind": "lora", "rank": 17, "targets": ["query"]}
    )


def test_default_targets_have_a_largest_rank_too(places: dict[str, Path]) -> None:
    problem = pretrained_runs.refused(places, adapter={"kind": "lora", "rank": 25, "targets": None})
    assert problem == "adapter.rank: 25 found, the model's layers allow at most 16"
    query = pretrained_runs.resident(toy.config(**changes(places, adapter={"kind": "head"}))).task._module.network
    query.bert.encoder.layer[1].attention.self.value = torch.nn.Linear(16, 6)
    with pytest.raises(ConfigError, match=r"adapter.rank: 8 found, the smallest layer 'value' allows at most 6"):
        adapters.attach(query, LoRA(kind="lora", rank=8), "SEQ_CLS")  # PEFT's own targets: query and value


@pytest.mark.parametrize(
    ("model", "table"), [("bert", "word_embeddings"), ("bert", "position_embeddings"), ("gpt2", "wte")]
)
def test_no_adapter_on_embedding_layers(places: dict[str, Path], model: str, table: str) -> None:
    """Whatever the method and the ranks: PEFT has A at zero and B at random there, under other names."""
    linear = {"bert": "dense, key, query, value", "gpt2": "c_attn, c_fc, c_proj"}[model]
    for kind, more in (("lora", {"rank": 2}), ("lora", {"rank": {1: 0.5, 2: 0.5}}), ("ia3", {"feedforward": []})):
        problem = pretrained_runs.refused(places, kind=model, adapter={"kind": kind, "targets": [table], **more})
        assert problem == f"adapter.targets: {table!r} found, an embedding layer; {kind} allows linear layers: {linear}"


def test_an_embedding_layer_of_another_name_is_seen_in_the_network(places: dict[str, Path]) -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lookup, self.query = torch.nn.Embedding(32, 16), torch.nn.Linear(16, 16)

    with pytest.raises(ConfigError, match="'lookup' found, an embedding layer; lora allows linear layers: query"):
        adapters.attach(Odd(), LoRA(kind="lora", rank=2, targets=["lookup"]), "SEQ_CLS")
