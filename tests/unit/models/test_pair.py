"""Pairs of towers against transformers' own networks, and prompts in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayfed import partition, tree
from rayfed import task as tasks
from rayfed.models.start import start_from
from tests import toy
from tests.configs import refusal

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    **SIZES,
    "vocab_size": 40,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
IMAGE = {**SIZES, "image_size": 8, "patch_size": 4, "num_channels": 3}
KINDS = ("clip", "siglip", "vision-text-dual-encoder")


def make_tokenizer(where: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from rayfed.data.synthetic import COLOURS, SHAPES

    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "picture", "of", ".", *COLOURS, *SHAPES]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)])
    given = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    given.save_pretrained(where)
    return given


def make_pair(where: Path, kind: str) -> tuple[Any, Any]:
    """Write a pair with random weights; returns (transformers' network, its tokenizer)."""
    import transformers as t

    torch.manual_seed(0)
    if kind == "clip":
        made = t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=12))
    elif kind == "siglip":
        made = t.SiglipModel(t.SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=IMAGE))
    else:
        vision = t.ViTConfig(**IMAGE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        text = t.BertConfig(**TEXT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        about = t.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=12)
        made = t.VisionTextDualEncoderModel(about)
    made.eval().save_pretrained(where)
    return made, make_tokenizer(where)


def make_task(**changes: Any) -> tuple[Any, Any]:
    c = toy.config(**toy.merge(toy.TOWERS, changes))
    f = partition.build(c)
    return tasks.of(f.task)(c, f, "cpu", start_from(c)), f


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_transformers_own(kind: str, tmp_path: Path) -> None:
    """Zero-shot logits of pictures and names, and those through prompts that hold the template's own words, to 1e-5."""
    network, words = make_pair(tmp_path, kind)
    at = {"task": {"model": {"name": f"hf:{tmp_path}"}}, "adapter": {"text": 4, "image": 0, "init": "a picture of a"}}
    task, f = make_task(**at)
    x = torch.as_tensor(f.arrays["x"][:5])
    fixed = {"padding": "max_length", "max_length": 20} if kind == "siglip" else {"padding": True}
    texts = words([f"a picture of a {n}." for n in f.label_names], return_tensors="pt", **fixed)
    mask = {} if kind == "siglip" else {"attention_mask": texts["attention_mask"]}
    with torch.no_grad():
        wanted = network(input_ids=texts["input_ids"], pixel_values=(x - 0.5) / 0.5, **mask).logits_per_image
        bias = network.logit_bias if kind == "siglip" else 0.0
        zero, prompted = task.zero_shot(x) + bias, task.apply(task.initial, x)
    torch.testing.assert_close(zero, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(prompted, wanted, rtol=0, atol=1e-5)
    free = task.text_features(task.initial, torch.where(texts["attention_mask"] > 0, texts["input_ids"], -1))
    torch.testing.assert_close(free, task.anchors, rtol=0, atol=1e-6)


def test_prompts_of_both_towers_and_of_clients_side_by_side() -> None:
    """Three clients' prompts in one pass give what three passes do; a tower without a learned token is the frozen one."""
    task, f = make_task()
    x = torch.as_tensor(f.arrays["x"][:4])
    each = [task.fresh_params(k) for k in range(3)]
    together = torch.func.vmap(lambda p: task.apply(p, x))(tree.stack(each))
    torch.testing.assert_close(together, torch.stack([task.apply(p, x) for p in each]), rtol=1e-4, atol=1e-4)
    plain = {**each[0], **{n: p for n, p in task.plain.items() if n.endswith("vpt.tokens")}}
    assert torch.equal(task.image_features(plain, x), task.image_features(task.plain, x))
    some = torch.tensor([5, 1])
    whole = task.class_features(each[0])
    torch.testing.assert_close(task.class_features(each[0], some), whole[some], rtol=1e-5, atol=1e-5)
    alone, _ = make_task(adapter={"text": 0, "image": 2})
    assert torch.equal(alone.class_features(alone.initial, some), alone.anchors[some])
    assert list(alone.params_like) == ["network.vision_model.encoder.layers.0.vpt.tokens"]


def test_new_classes_are_no_candidates_in_training(tmp_path: Path) -> None:
    task, f = make_task()
    assert task.new.tolist() == [6, 7] and not f.class_counts[:, 6:].any()
    assert set(f.arrays["y"][f.pooled_test]) == set(range(8)), "the pooled test set has them"
    assert f.from_numpy(f.numpy()).new_classes == (6, 7) and (f.from_numpy(f.numpy()).texts == f.texts).all()
    rows = f.train[0][:6]
    batch = task.batch({n: a[rows] for n, a in f.arrays.items()})
    logits = task.apply(task.initial, batch["x"])[:, :6]
    wanted = torch.nn.functional.cross_entropy(logits, batch["y"].long(), reduction="none")
    torch.testing.assert_close(task.loss(task.initial, batch), wanted, rtol=1e-4, atol=1e-5)
    own, _ = make_task(task={"kind": {"name": "towers", "temperature": 0.5}})
    cosines = own.image_features(own.initial, batch["x"]) @ own.class_features(own.initial).T
    torch.testing.assert_close(own.apply(own.initial, batch["x"]), cosines / 0.5, rtol=1e-5, atol=1e-5)


def test_a_run_publishes_its_prompts(tmp_path: Path) -> None:
    ran = toy.run_folder("fedavg", tmp_path, **toy.TOWERS)
    kept = ran.folder.path / "model" / "adapter" / "model.safetensors"
    from safetensors.numpy import load_file

    assert {n: x.shape for n, x in load_file(kept).items()} == {
        "network.vision_model.encoder.layers.0.vpt.tokens": (1, 32), "context.tokens": (2, 32),
    }  # fmt: skip


def test_refused(tmp_path: Path) -> None:
    assert "adapter.kind: prompts found, task.model: mlp has no two towers; allowed: two_tower" in refusal(
        toy.config, adapter={"kind": "prompts"}
    )
    assert "adapter.kind: vpt found" in refusal(
        toy.config, **toy.merge(toy.TOWERS, {"adapter": {"kind": "vpt", "text": None}})
    )
    for asked, said in (
        (["red circl"], "federation.new_classes: 'red circl' found (did you mean 'red circle'?)"),
        (7, "federation.new_classes: 7 of 8 classes found, allowed: at most 6"),
    ):
        assert said in refusal(make_task, federation={"new_classes": asked})
    assert "federation.public.rows: 90 found, allowed: at most the" in refusal(
        make_task, federation={"public": {"rows": 90, "classes": "new"}}
    )
    assert "task.kind.templates: 'a picture' found" in refusal(
        make_task, task={"kind": {"name": "towers", "templates": ["a picture"]}}
    )
    assert "takes 24 tokens" in refusal(make_task, adapter={"text": 22})
    own = tmp_path / "named.py"
    own.write_text(
        "from dataclasses import replace\nfrom rayfed import data\nfrom rayfed.config.schema import Named\n\n\n"
        "def named(seed, names=()):\n"
        "    made = data.load(Named(name='synthetic:shapes', classes=2, examples=20, test=4, size=8), seed)\n"
        "    return replace(made, label_names=tuple(names))\n"
    )
    for names, said in (
        (["red circle", " "], "task.data: class ' ' tokenises to nothing"),
        (["red ring", "red  ring"], "task.data: classes 'red ring' and 'red  ring' are the same tokens"),
    ):
        c = toy.config(
            **toy.merge(toy.TOWERS, {"task": {"data": {"name": f"{own}:named"}}, "federation": {"new_classes": 0}})
        )
        c = c.model_copy(
            update={"task": c.task.model_copy(update={"data": type(c.task.data)(name=f"{own}:named", names=names)})}
        )
        assert said in refusal(partition.build, c)
