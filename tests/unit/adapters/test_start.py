"""Runs that start from an adapter: another's is refused before anything starts, a client's own gives what it gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from rayfed.api import Run
from rayfed.errors import ConfigError
from rayfed.storage import cache
from tests import minilm, toy
from tests.configs import refusal
from tests.pretrained_runs import resident
from tests.tiny import KINDS, changes


def saved(places: dict[str, Path], where: Path, **settings: Any) -> Any:
    """A LoRA saved by plain PEFT, all of it drawn at random."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = LoraConfig(
        task_type="SEQ_CLS", target_modules=["query", "value"], init_lora_weights=False, **{"r": 2, **settings}
    )
    made = get_peft_model(AutoModelForSequenceClassification.from_pretrained(places["bert"], num_labels=3), config)
    made.save_pretrained(where)
    return made.eval()


def refused(places: dict[str, Path], where: Path, **more: Any) -> str:
    return refusal(lambda: toy.config(**changes(places, init={"from": str(where)}, **more)))


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (
            {"lora_alpha": 2},
            "adapter.alpha: 8 found, init.from: {} holds a LoRA of rank 2 and alpha 2: B A counts 1 times there, 4 times here; "
            "allowed: --set adapter.alpha=2",
        ),
        (
            {"r": 4, "lora_alpha": 16},
            "adapter.rank: 2 found, init.from: {} holds a LoRA of rank 4 and alpha 16: B A counts 4 times there, 4 times here; "
            "allowed: --set adapter.rank=4 --set adapter.alpha=16",
        ),
        (
            {"lora_alpha": 8, "use_rslora": True},
            "adapter.alpha: 8 found, init.from: {} holds a LoRA of rank 2 and alpha 8: B A counts 5.65685 times there, 4 times here; "
            "allowed: --set adapter.rslora=true --set adapter.alpha=8",
        ),
        (
            {"lora_alpha": 8, "alpha_pattern": {"query": 4}},
            'init.from: {} holds a LoRA with alpha_pattern: {"query": 4} found; allowed: none of use_dora, '
            "rank_pattern, alpha_pattern",
        ),
    ],
)
def test_a_lora_of_another_scale_is_refused(
    places: dict[str, Path], tmp_path: Path, theirs: dict[str, Any], says: str
) -> None:
    saved(places, tmp_path, **theirs)
    assert refused(places, tmp_path) == says.replace("{}", str(tmp_path), 1)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_the_refusal_says_fits(places: dict[str, Path], tmp_path: Path, rslora: bool) -> None:
    plain = saved(places, tmp_path, r=4, lora_alpha=4, use_rslora=rslora)
    problem = refused(places, tmp_path)
    adapter = {
        k.removeprefix("adapter."): yaml.safe_load(v)
        for k, v in (s.split()[0].split("=") for s in problem.split("--set ")[1:])
    }
    res = resident(toy.config(**changes(places, init={"from": str(tmp_path)}, adapter=adapter)))
    x = res.data["x"][:8]
    with torch.no_grad():
        want = plain(input_ids=x.clamp(min=0).long(), attention_mask=(x >= 0).long()).logits
    torch.testing.assert_close(res.task.apply(res.task.initial, x), want, rtol=1e-5, atol=1e-6)


def test_another_kind_and_files_that_are_none(places: dict[str, Path], tmp_path: Path) -> None:
    saved(places, tmp_path, lora_alpha=8)
    toy.config(**changes(places, init={"from": str(tmp_path)}))
    problem = refused(places, tmp_path, adapter=KINDS["ia3"])
    assert "adapter.kind: ia3 found" in problem and problem.endswith(
        "PEFT's type LORA; allowed: --set adapter.kind=lora"
    )
    file = tmp_path / "adapter_config.json"
    about = json.loads(file.read_text())
    for other, says in (
        (
            {"peft_type": "ADALORA"},
            "PEFT's type ADALORA (did you mean 'LORA'?); allowed: adapters of LORA, IA3, PROMPT_TUNING,",
        ),
        ({"r": 0}, "adapter_config.json says r: 0 and lora_alpha: 8, allowed: numbers above 0"),
    ):
        file.write_text(json.dumps({**about, **other}))
        assert says in refused(places, tmp_path)
    file.write_text("{")
    assert "adapter_config.json is not readable" in refused(places, tmp_path)


@pytest.mark.parametrize("part", [".", "model"])
def test_a_run_of_another_scale_is_refused(places: dict[str, Path], tmp_path: Path, part: str) -> None:
    path = toy.run_folder("fedavg", tmp_path, rounds=1, **changes(places)).folder.path
    for _ in range(2):
        toy.config(**changes(places, init={"from": str(path / part)}))
        problem = refused(places, path / part, adapter={"alpha": None})
        assert problem.startswith("adapter.alpha: 4 found") and problem.endswith("allowed: --set adapter.alpha=8")
        problem = refused(places, path / part, adapter={"rank": {2: 0.5, 4: 0.5}})
        assert problem.startswith("adapter.rank: 4 found") and "--set adapter.rank=2 --set adapter.alpha=8" in problem
        (path / "model" / "adapter_config.json").unlink(missing_ok=True)  # as after a method that moves the base
        summary = json.loads((path / "summary.json").read_text())
        summary["files"].pop("model/adapter_config.json", None)
        (path / "summary.json").write_text(json.dumps(summary))


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": KINDS["lora"],
    "ranks": {**KINDS["lora"], "rank": {1: 0.5, 4: 0.5}},
    "ia3": KINDS["ia3"],
    "prompt": {"kind": "prompt", "tokens": 3},
    "bottleneck": {"kind": "bottleneck", "size": 4},
    "head": {"kind": "head"},
}


def assert_it_goes_on(run: Run, client: int, where: Path, changed: dict[str, Any]) -> None:
    """A run from a client's saved adapter begins with the logits that the client was served."""
    run.save_adapter(client, where)
    x = np.asarray(run._served.federation.arrays["x"])[:9]
    want, source = run.model(client=client)(x), where / "adapter" if (where / "adapter").is_dir() else where
    task = resident(toy.config(**toy.merge(changed, {"init": {"from": str(source)}}))).task
    torch.testing.assert_close(task.apply(task.initial, torch.as_tensor(x)), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_the_classifier_of_mean_pooling_goes_with_a_clients_adapter(
    places: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    made = changes(places, task={"model": {"head": "mean"}})
    made["adapter"] = ADAPTERS[kind]
    run = Run(toy.run_folder("fedit" if kind == "ranks" else "fedavg", tmp_path, rounds=1, **made).folder.path)
    assert run.models() == ["model"]
    clients = [0]
    if kind == "ranks":
        clients = [run._served.task.ranks.tolist().index(r) for r in (1, 4)]
    for client in clients:
        again = dict(made)
        if kind == "ranks":
            again["adapter"] = {**KINDS["lora"], "rank": int(run._served.task.ranks[client])}
        assert_it_goes_on(run, client, tmp_path / f"client-{client}", again)


def test_a_classifier_alone_is_no_start_of_a_lora(places: dict[str, Path], tmp_path: Path) -> None:
    made = changes(places, task={"model": {"head": "mean"}})
    run = Run(toy.run_folder("fedavg", tmp_path, rounds=1, **{**made, "adapter": {"kind": "head"}}).folder.path)
    run.save_adapter(0, tmp_path / "client")
    with pytest.raises(ConfigError, match="of another model or adapter: without network"):
        _ = resident(toy.config(**toy.merge(made, {"init": {"from": str(tmp_path / "client")}}))).task.initial


@minilm.needed
def test_on_all_minilm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
    minilm.write_texts(tmp_path / "texts")
    made = minilm.changes(tmp_path / "texts", task={"model": {"head": "mean"}})
    run = Run(toy.run_folder("fedsa_lora", tmp_path / "runs", rounds=1, **made).folder.path)
    assert_it_goes_on(run, 1, tmp_path / "client", made)
