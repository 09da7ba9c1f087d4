"""What is exported is opened by the libraries that it is for, from any folder, and answers as the run's own model does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import rayfed
from rayfed.launch.export import export
from rayfed.models import folder
from tests import toy
from tests.configs import refusal
from tests.tiny import changes

TEXTS = ["the w00 w01 w02", "w13 the w11", "w22"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, places: dict[str, Path]) -> rayfed.Run:
    """A tiny BERT with LoRA on texts of three classes, whose folder was moved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYFED_CACHE", str(tmp_path_factory.mktemp("cache")))
        where = tmp_path_factory.mktemp("runs")
        ran = toy.run_folder("fedavg", where, rounds=2, **changes(places)).folder.path
    moved = shutil.move(ran, tmp_path_factory.mktemp("elsewhere") / "run")
    found = rayfed.load(moved)
    assert isinstance(found, rayfed.Run)
    return found


def answers(run: rayfed.Run, texts: list[str]) -> torch.Tensor:
    """What the run's own model answers."""
    ids = folder.tokenizer(Path(run.config["task"]["model"]["name"].removeprefix("hf:")))(texts)["input_ids"]
    length = run.model().input_shape[0]
    rows = torch.full((len(ids), length), -1)
    for row, found in zip(rows, ids):
        row[: len(found)] = torch.tensor(found)
    return run.model()(rows)


def test_the_adapter_of_a_run_is_opened_by_peft_from_any_folder(
    run: rayfed.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    monkeypatch.chdir(tmp_path)
    for where in (run.path / "model", export(run.path, tmp_path / "adapter")):
        model = AutoPeftModelForSequenceClassification.from_pretrained(where, num_labels=3).eval()
        given = AutoTokenizer.from_pretrained(where)(TEXTS, padding=True, return_tensors="pt")
        given.pop("token_type_ids", None)
        with torch.no_grad():
            assert torch.allclose(model(**given).logits, answers(run, TEXTS), atol=1e-5)


def test_a_merged_model_is_a_pipelines(run: rayfed.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import pipeline

    where = export(run.path, tmp_path / "merged", merge=True)
    monkeypatch.chdir(tmp_path)
    said = pipeline("text-classification", model=str(where), top_k=None)(TEXTS)
    expected = answers(run, TEXTS).softmax(-1)
    for row, found in zip(expected, said):
        scores = {s["label"]: s["score"] for s in found}
        assert set(scores) == {"0", "1", "2"}  # the names that the data give their classes
        assert [scores[str(k)] for k in range(3)] == pytest.approx(row.tolist(), abs=1e-5)
    names = {f.name for f in where.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
    } <= names and "adapter_config.json" not in names


def test_the_card_says_what_was_done(run: rayfed.Run, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    for file in (run.path / "model" / "README.md", export(run.path, tmp_path / "a") / "README.md"):
        card = ModelCard.load(file)
        final = run.summary["metrics"]["accuracy/global"]["final"]  # type: ignore[index]
        assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-classification"
        values = {r.metric_name: r.metric_value for r in card.data.eval_results}
        assert values["accuracy/global"] == pytest.approx(final)
        assert "2 rounds of `fedavg` over 6 simulated clients" in card.text and "Classes: 0, 1, 2." in card.text
        assert "rayfed run" in card.text and "AutoPeftModelForSequenceClassification" in card.text


def test_a_network_of_rayfeds(tmp_path: Path) -> None:
    ran = toy.run_folder("fedavg", tmp_path / "runs", rounds=1).folder.path
    where = export(ran, tmp_path / "out")
    from safetensors.torch import load_file

    model = rayfed.load(ran).model()  # type: ignore[union-attr]
    held = load_file(where / "model.safetensors")
    assert held.keys() == dict(model).keys() and all(torch.equal(held[n], p) for n, p in model.items())
    assert "rayfed.load(" in (where / "README.md").read_text()


@pytest.mark.parametrize("merged", [False, True])
def test_onnx(run: rayfed.Run, tmp_path: Path, merged: bool) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    if merged:
        where = export(run.path, tmp_path / "out", merge=True, onnx=True)
        ids = torch.tensor([[2, 4, 5, 3], [2, 10, 3, 0], [2, 11, 12, 3]])
        given: dict[str, Any] = {"input_ids": ids.numpy(), "attention_mask": (ids > 0).long().numpy()}
        rows = torch.full((3, run.model().input_shape[0]), -1)
        rows[:, :4] = torch.where(ids > 0, ids, -1)
        expected = run.model()(rows)
    else:
        ran = toy.run_folder("fedavg", tmp_path / "runs", rounds=1).folder.path
        where = export(ran, tmp_path / "out", onnx=True)
        x = torch.randn(5, 8)
        given, expected = {"x": x.numpy()}, rayfed.load(ran).model()(x)  # type: ignore[union-attr]
    (found,) = runtime.InferenceSession(where / "model.onnx").run(None, given)
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


def test_what_cannot_be_exported(run: rayfed.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = toy.run_folder("fedavg", tmp_path / "runs", rounds=1).folder.path
    assert "which has no adapter; leave it out" in refusal(export, small, tmp_path / "o", merge=True)
    assert "(did you mean 'model'?), there is: model" in refusal(export, small, tmp_path / "o", name="modl")
    assert "is not a run folder" in refusal(export, tmp_path, tmp_path / "o")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    both = refusal(export, small, tmp_path / "full", best=False, merge=True)
    assert "no empty folder" in both and "has no adapter" in both  # all at once
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'rayfed-engine[onnx]'" in refusal(export, small, tmp_path / "o", onnx=True)
    assert not (tmp_path / "o").exists() and [p.name for p in (tmp_path / "full").iterdir()] == ["file"]


def test_names_of_classes_are_written_where_they_fit(tmp_path: Path) -> None:
    from rayfed.engine.exports import name_classes

    file = tmp_path / "config.json"
    file.write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "model_type": "bert"}))
    name_classes(file, ["a", "b", "c"])
    assert json.loads(file.read_text())["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    name_classes(file, ["a", "b"])
    assert json.loads(file.read_text()) == {
        "id2label": {"0": "a", "1": "b"},
        "label2id": {"a": 0, "b": 1},
        "model_type": "bert",
    }
