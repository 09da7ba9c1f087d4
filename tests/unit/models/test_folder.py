"""A pretrained model's folder: what it lacks, and how many tokens its model takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayfed.config.schema import Named
from rayfed.errors import ConfigError
from rayfed.models import folder, pretrained
from tests import toy
from tests.pretrained_runs import refused, resident
from tests.tiny import changes, make_tokenizer


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


def test_an_incomplete_folder(places: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(places["bert"], broken)
    where = {**places, "bert": broken}
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:-100])
    assert f"({len(whole) - 100:,} bytes) is no safetensors file, damaged or incomplete" in refused(where)
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
    for other, says in (
        ("{}", "has no"),
        ("[1]", "holds a list"),
        ('{"weight_map": null}', "has no"),
        ("[" * 9**5, "is not read"),
    ):
        (broken / "model.safetensors.index.json").write_text(other)
        assert f"model.safetensors.index.json {says}" in refused(where)
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


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**40, 2**62, 2**64 - 1])
def test_a_header_of_another_size(places: dict[str, Path], tmp_path: Path, size: int) -> None:
    shutil.copytree(places["bert"], tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    file.write_bytes(size.to_bytes(8, "little") + file.read_bytes()[8:])
    assert "is no safetensors file, damaged or incomplete" in refused({**places, "bert": tmp_path / "broken"})


@pytest.mark.parametrize("content", ["[1]", '"x"', "{", "[" * 9**5, '{"model_type": 5}', "\xe9"])
def test_a_description_that_is_none(places: dict[str, Path], tmp_path: Path, content: str) -> None:
    shutil.copytree(places["bert"], tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text(content, encoding="latin1")
    assert refused({**places, "bert": tmp_path / "broken"}).startswith(
        f"task.model: {tmp_path / 'broken' / 'config.json'}"
    )
