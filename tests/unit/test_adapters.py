"""Adapters of every kind on tiny transformers, and images for pretrained image models: held against PEFT and transformers."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from rayfed import partition, tree
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from rayfed.models import pixels
from rayfed.models.start import start_from
from rayfed.storage import cache
from tests import toy
from tests.tiny import KINDS, changes, make_places, make_vit, pefts

TEXT: dict[str, Any] = {
    "prompt": {"kind": "prompt", "tokens": 3},
    "vocab": {"kind": "prompt", "tokens": 3, "init": "vocab"},
    "words": {"kind": "prompt", "tokens": 8, "init": "text", "text": "the w00 w11"},
    "bottleneck": {"kind": "bottleneck", "size": 4},
    "ssf": {"kind": "ssf"},
    "head": {"kind": "head"},
}
IMAGE: dict[str, Any] = {
    "vpt": {"kind": "vpt", "tokens": 2},
    "shallow": {"kind": "vpt", "tokens": 2, "deep": False},
    "bottleneck": {"kind": "bottleneck", "size": 4, "targets": ["fc2", "o_proj"]},
    "ssf": {"kind": "ssf"},
    "lora": {"kind": "lora", "rank": 2, "targets": ["q_proj", "v_proj"]},
    "ia3": {"kind": "ia3", "targets": ["k_proj", "v_proj", "fc1"], "feedforward": ["fc1"]},
    "bias": {"kind": "bias"},
    "head": {"kind": "head"},
    "full": {"kind": "full"},
}
PREFIX = {"kind": "prefix", "tokens": 3}
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


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pretrained")
    make_vit(root / "vit")
    return {**make_places(root, spread=0.2), "vit": root / "vit"}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as m:
        m.setenv(cache.CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


def spec(places: dict[str, Path], model: str, adapter: Any, head: str = "auto", **more: Any) -> dict[str, Any]:
    """Changes to the toy's config: six clients, texts or digits."""
    made = changes(places, "bert" if model == "vit" else model, adapter=adapter, task={"model": {"head": head}})
    if model == "vit":
        made["task"] = {"data": {"name": "digits"}, "model": {"name": f"hf:{places['vit']}", "head": head}}
    return toy.merge(made, more)


def resident(places: dict[str, Path], model: str, adapter: Any, head: str = "auto", **more: Any) -> Resident:
    c = toy.config(**spec(places, model, adapter, head, **more))
    return Resident(c, partition.build(c), start_from(c), "cpu")


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


# -- training --------------------------------------------------------------------------------------------------------------


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


def test_deep_prompts_take_the_place_of_those_before(places: dict[str, Path]) -> None:
    """Held against the same blocks called one after the other by hand."""
    deep, shallow = (resident(places, "vit", IMAGE[k], "mean") for k in ("vpt", "shallow"))
    params, x = deep.task.fresh_params(1), deep.data["x"][:3]
    net = deep.task._module.network
    names = [n for n in params if n.endswith("vpt.tokens")]
    assert len(names) == 2 and all(params[n].shape == (2, 16) for n in names)
    for how, task in (("deep", deep.task), ("shallow", shallow.task)):
        given = {n: params[n] for n in task.params_like}
        with torch.no_grad():
            plain = resident(places, "vit", {"kind": "head"}, "mean").task._module
            h = plain.network.embeddings(plain.pixels(x))
            for i, block in enumerate(plain.network.layers):
                if i == 0 or how == "deep":
                    h = torch.cat([h[:, :1], params[names[i]].expand(3, -1, -1), h[:, 1 if i == 0 else 3 :]], 1)
                h = block(h)
            h = plain.network.layernorm(torch.cat([h[:, :1], h[:, 3:]], 1)).mean(1)
            want = torch.nn.functional.linear(h, params["head.weight"], params["head.bias"])
        torch.testing.assert_close(task.apply(given, x), want, rtol=1e-5, atol=1e-6)
    assert len(net.layers) == 2


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


# -- what a run leaves -----------------------------------------------------------------------------------------------------


def run(places: dict[str, Path], where: Path, model: str, adapter: Any, head: str = "auto") -> toy.Ran:
    return toy.run_folder("fedavg", where, executor="vmap", **spec(places, model, adapter, head))


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


@pytest.mark.parametrize("adapter", ["vpt", "bottleneck", "ssf"])
def test_what_peft_has_no_format_of_is_saved_beside_its_settings(
    places: dict[str, Path], tmp_path: Path, adapter: str
) -> None:
    done = run(places, tmp_path, "vit", IMAGE[adapter])
    where = done.folder.path / "model" / "adapter"
    about = json.loads((where / "adapter.json").read_text())
    assert about["base"] == str(places["vit"]) and IMAGE[adapter].items() <= about.items()
    shutil.copytree(where, tmp_path / "copy")
    task = resident(
        places, "vit", {k: v for k, v in about.items() if k != "base"}, init={"from": str(tmp_path / "copy")}
    ).task
    assert tree.same(task.init_params(0), done.state["model"])
    with pytest.raises(ConfigError, match="of another model or adapter"):
        resident(places, "vit", {"kind": "bias"}, init={"from": str(where)}).task.init_params(0)


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


# -- images as the model knows them ----------------------------------------------------------------------------------------


def processed(tmp_path: Path, channels: int, **says: Any) -> Callable[[tuple[int, ...]], tuple[Any, Any, Any]]:
    """(our pixels for images of a shape, transformers' processor, its settings) of a folder."""
    from types import SimpleNamespace

    # Not from transformers itself, whose older releases ask for torchvision first.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    settings = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 12, "width": 12}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4], **says,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    about = SimpleNamespace(num_channels=channels, image_size=12)
    return lambda shape: (
        pixels.build(about, settings, shape, "m"),
        AutoImageProcessor.from_pretrained(tmp_path),
        settings,
    )


CROP = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 14}, "do_center_crop": True,
        "crop_size": {"height": 12, "width": 12}}  # fmt: skip


@pytest.mark.parametrize(
    "says", [{}, {"resample": 3}, {**CROP, "resample": 3}, CROP], ids=["bilinear", "bicubic", "crop3", "crop2"]
)
@pytest.mark.parametrize("size", [(8, 8), (12, 12), (28, 20), (17, 40)])
def test_pixels_are_those_of_transformers_processor(
    tmp_path: Path, says: dict[str, Any], size: tuple[int, int]
) -> None:
    """But for its rounding to whole grey levels, once in each direction."""
    ours, theirs, settings = processed(tmp_path, 3, **says)((3, *size))
    x = np.random.default_rng(0).integers(0, 256, (3, *size)).astype(np.uint8)
    want = torch.as_tensor(np.asarray(theirs(x.transpose(1, 2, 0), return_tensors="np")["pixel_values"]))
    got = ours(torch.as_tensor(x / 255.0)[None])
    assert got.shape == want.shape
    levels = ((got - want) * 255 * torch.tensor(settings["image_std"])[:, None, None]).abs().max()
    assert levels < (1e-3 if size == (12, 12) and not says.get("do_center_crop") else 2.1)


@pytest.mark.parametrize("how", [2, 3])
@pytest.mark.parametrize("n", [5, 8, 28, 40])
def test_resizing_is_pillows(n: int, how: int) -> None:
    from PIL import Image

    x = np.random.default_rng(n).random((n, n + 3)).astype(np.float32)
    want = np.asarray(Image.fromarray(x).resize((16, 12), resample=how))
    rows, columns = pixels._resize(n, 12, pixels.FILTERS[how]), pixels._resize(n + 3, 16, pixels.FILTERS[how])
    np.testing.assert_allclose((rows @ torch.as_tensor(x).double() @ columns.T).numpy(), want, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_logits_of_other_sizes_and_channels_are_transformers(tmp_path: Path, channels: int) -> None:
    """Digits of 8x8 and one channel to a ViT of 12x12: Pillow resizes, the folder's processor normalises, the plain model reads."""
    from PIL import Image
    from transformers import AutoModelForImageClassification
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    folder = tmp_path / "m"
    make_vit(folder, image_size=12, num_channels=channels)
    processed(folder, channels, image_mean=[0.3] * channels, image_std=[0.2] * channels)
    res = resident({**make_places(tmp_path), "vit": folder}, "vit", {"kind": "full"})
    params, x = res.task.fresh_params(0), res.data["x"][:7]
    big = np.stack([np.asarray(Image.fromarray(i[0].numpy()).resize((12, 12), resample=2)) for i in x])
    given = AutoImageProcessor.from_pretrained(folder)(
        [np.repeat(i[..., None], channels, -1) for i in big], do_resize=False, do_rescale=False, return_tensors="pt",
        input_data_format="channels_last",
    )  # fmt: skip
    plain = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        for n, p in plain.named_parameters():
            p.copy_(params[f"network.{n}"])
        want = plain(**given).logits
    torch.testing.assert_close(res.task.apply(params, x), want, rtol=0, atol=1e-4)
    assert float(want.std()) > 0.1


def test_images_that_cannot_be_reconciled(tmp_path: Path, places: dict[str, Path]) -> None:
    def told(shape: tuple[int, ...], channels: int = 3, **says: Any) -> str:
        with pytest.raises(ConfigError) as e:
            processed(tmp_path, channels, **says)(shape)
        return str(e.value)

    assert "takes images of 3 channels, those of task.data have 2; allowed: 1 or 3" in told((2, 8, 8))
    assert "takes images of 1 channel, those of task.data have 3; allowed: 1" in told((3, 8, 8), 1)
    assert "makes images of 20x20, its config.json takes 12x12" in told((3, 8, 8), size={"height": 20, "width": 20})
    assert "needs images, task.data has examples of shape (8,)" in told((8,))
    assert "resample 1 found, allowed: 2 (bilinear), 3 (bicubic)" in told((3, 8, 8), resample=1)
    assert "image_mean has 3 values, the model 1 channels" in told((1, 8, 8), 1)
    assert "crop_size 12 found, the resized images have 10" in told(
        (3, 8, 8), **{**CROP, "size": {"shortest_edge": 10}}
    )
    broken = tmp_path / "broken"
    shutil.copytree(places["vit"], broken)
    (broken / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"preprocessor_config.json is not readable"):
        resident({**places, "vit": broken}, "vit", {"kind": "head"})


# -- what is wrong is told -------------------------------------------------------------------------------------------------


def refused(places: dict[str, Path], model: str, adapter: Any, **more: Any) -> str:
    with pytest.raises(ConfigError) as told:
        resident(places, model, adapter, **more)
    return str(told.value)


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


def test_virtual_tokens_take_places_of_the_text(places: dict[str, Path]) -> None:
    long = {"task": {"data": {"length": 22}}}
    said = refused(places, "bert", {"kind": "prompt", "tokens": 3}, **long)
    assert "task.data.length: 22 found" in said and "takes at most 21 tokens beside 3 of the adapter" in said
    assert "adapter.tokens: 24 found" in refused(places, "bert", {"kind": "prompt", "tokens": 24})
    assert resident(places, "bert", {"kind": "prompt", "tokens": 2}, **long).task.input_shape[0] <= 22


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
    with pytest.raises(ConfigError) as told:
        toy.config(**spec(places, "bert", adapter))
    assert says in str(told.value)


def test_the_claim_about_adapters_says_how_its_model_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayfed.launch import claims

    file = claims.benchmarks_folder() / "claims" / "adapters_compared.yaml"
    monkeypatch.setenv(claims.MODELS, str(tmp_path))
    told = claims.missing_data(file)
    assert told is not None and told.endswith("to make it: python benchmarks/pretrain_vit.py") and str(tmp_path) in told
    make_vit(tmp_path / "tiny-vit-digits", hidden_size=64, num_attention_heads=4)
    assert claims.missing_data(file) is None
    assert {c.adapter.kind for c in claims.read_claim(file).arms.values()} == {
        "full",
        "head",
        "bias",
        "bottleneck",
        "vpt",
        "lora",
    }


def test_all_parameters_are_fedavg_to_the_bit(places: dict[str, Path]) -> None:
    """FedPEFT's variant that trains everything, beside the same run without an adapter."""
    more = {"local": {"optimizer": {"name": "sgd", "lr": 0.1}}}
    full, plain = (simulate(toy.config(**spec(places, "bert", {"kind": k}, **more))) for k in ("full", "none"))
    assert tree.same(full[1], plain[1]) and not tree.same(full[0], full[1])
    network = transformers.AutoModelForSequenceClassification.from_pretrained(places["bert"], num_labels=3)
    assert set(full[1]["model"]) == {f"network.{n}" for n, _ in network.named_parameters()}
