"""Greedy decoding: what is written, against transformers' own, and its scores by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayfed.task.generate import prompts, truth, written_scores
from tests import tiny, toy
from tests.tiny_lm import make_data, make_lm


def record(prompt: list[int], answer: list[int], length: int) -> torch.Tensor:
    ids = [*prompt, *answer]
    x = torch.full((2, length), -1, dtype=torch.int32)
    x[0, : len(ids)] = torch.tensor(ids)
    x[1, len(prompt) : len(ids)] = torch.tensor(answer)
    return x


def test_scores_by_hand() -> None:
    """a b c d against b a c: the longest common subsequence has 2 tokens, 3 are shared: 2 * 2 / 7 and 2 * 3 / 7.
    a a a against a b: 1 shared."""
    x = torch.stack([record([9], [5, 4, 6, 1], 8), record([9, 9], [4, 5, 1], 8), record([9], [1], 8)])
    ids, at, last = prompts(x)
    assert at.tolist() == [1, 2, 1] and last.tolist() == [1, 1, 1] and (ids >= 0).sum(-1).tolist() == [1, 2, 1]
    written = torch.tensor([[4, 5, 6, 7], [4, 4, 4, -1], [-1, -1, -1, -1]])
    rouge, f1 = written_scores(written, *truth(x))
    torch.testing.assert_close(rouge, torch.tensor([4 / 7, 2 / 5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(f1, torch.tensor([6 / 7, 2 / 5, 1.0], dtype=torch.float64))


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("lm")
    make_lm(root / "lm", "llama")
    make_data(root / "records", 36)
    task = {"data": {"name": f"parquet:{root / 'records'}", "length": 24, "template": "{instruction} {input} {response}"},
            "model": {"name": f"hf:{root / 'lm'}"}, "kind": {"name": "generate", "tokens": 4}}  # fmt: skip
    federation = {
        "clients": 2,
        "per_round": 1,
        "partition": {"kind": "iid"},
        "groups": {"kind": "none", "count": 1},
        "holdout": {"kind": "none"},
    }
    c = toy.config(
        "fedavg",
        task=task,
        federation=federation,
        adapter={"kind": "lora", "rank": 2},
        local={"epochs": None, "steps": 1, "batch_size": 4},
    )
    return tiny.make_fed(c), root


def test_it_writes_what_transformers_writes(fed: Any) -> None:
    from transformers import AutoModelForCausalLM

    made, root = fed
    network = AutoModelForCausalLM.from_pretrained(Path(root) / "lm")
    x = torch.as_tensor(made.federation.arrays["x"][:6])
    written = made.task.write(made.task.initial, x)
    for row, got in zip(x, written, strict=True):
        prompt = row[0][(row[0] >= 0) & (row[1] < 0)].long()[None]
        out = network.generate(
            prompt, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(prompt), pad_token_id=1
        )
        told = [t for t in out[0, prompt.shape[1] :].tolist() if t != 1]
        assert got[got >= 0].tolist() == told
    vectorised = torch.func.vmap(lambda one: made.task.write(made.task.initial, one[None])[0])(x)
    assert torch.equal(vectorised, written)


def test_measures_are_of_each_record_and_of_all(fed: Any) -> None:
    made, _ = fed
    batch = made.task.batch({n: a[:6] for n, a in made.federation.arrays.items()})
    found = made.task.metrics(made.task.initial, batch)
    assert list(found) == ["loss", "accuracy", "exact", "rouge_l", "token_f1"]
    assert all(bool((found[n] <= found["token_f1"] + 1e-6).all()) for n in ("rouge_l",))
    mean = made.task.judge_mean(made.task.predict(made.task.initial, batch), batch)
    for n in ("rouge_l", "token_f1"):
        torch.testing.assert_close(mean[n], found[n])
    rows = {"loss": found["loss"].double().numpy()}
    assert made.task.summary(rows, {})["perplexity"] == pytest.approx(float(found["loss"].double().mean().exp()))
