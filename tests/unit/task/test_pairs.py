"""Pairs: losses and measures by hand, of any grouping of rows; texts as numbers of words; everybody's test rows."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayfed import data
from rayfed.config.schema import Named
from rayfed.data.pairs import encoded, paired
from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from rayfed.launch import model_check
from tests import toy


def resident(**kind: Any) -> Resident:
    c = toy.config("fedavg", dtype="float64", **toy.merge(toy.PAIRS, {"task": {"kind": {"name": "pairs", **kind}}}))
    return Resident(c, toy.federation(c), None, "cpu")


def test_the_loss_by_hand() -> None:
    """Two different passages, one of them twice, and padding."""
    t: Any = resident(temperature=0.5).task
    s = torch.tensor([[0.8, 0.1, 0.8, 9.0], [0.2, 0.6, 0.2, 9.0], [0.3, 0.0, 0.5, 9.0], [0, 0, 0, 0]]).double()
    passage = torch.tensor([[1, 2], [3, 4], [1, 2], [7, 7]])
    batch = {"x": torch.stack([passage, passage], 1), "w": torch.tensor([1.0, 1, 1, 0]).double()}
    want = [math.log1p(math.exp((a - b) / 0.5)) for a, b in ((0.1, 0.8), (0.0, 0.5))]
    found = t.contrast(s, batch)
    assert found[[0, 2]].tolist() == pytest.approx(want)
    both = -math.log(math.exp(1.2) / (math.exp(1.2) + 2 * math.exp(0.4)))
    assert float(found[1]) == pytest.approx(both) and bool(torch.isfinite(found).all())
    one = {n: x[:1] for n, x in batch.items()}
    assert t.contrast(s[:1, :1], one).tolist() == [0]


def test_order_and_length_of_embeddings_do_not_count() -> None:
    t: Any = resident().task
    f = toy.federation(resident().config)
    batch = t.batch({n: a[f.train.rows[:9]] for n, a in f.arrays.items()})
    loss = t.loss(t.initial, batch)
    order = torch.randperm(9)
    torch.testing.assert_close(t.loss(t.initial, {n: x[order] for n, x in batch.items()}), loss[order])
    longer = t.read_by(lambda params, x: 7 * t.apply(params, x))
    torch.testing.assert_close(longer.loss(t.initial, batch), loss)


def test_measures_by_hand() -> None:
    t: Any = resident(k=[1, 2], temperature=1.0).task
    q = np.array([[1.0, 0], [0, 1], [0.6, 0.8], [1, 0]])
    p = np.array([[1.0, 0], [0.6, 0.8], [1, 0], [1.0, 0]])  # the last is the first one's, once more
    passage = np.array([[1], [2], [3], [1]])
    rows, batch = {"prediction": np.stack([q, p], 1)}, {"x": np.stack([passage, passage], 1)}
    found = t.summary(rows, batch)
    ranks = [2, 1, 3, 2]  # equal cosines count against it; of three passages
    assert found["hit@1"] == 0.25 and found["hit@2"] == 0.75
    assert found["mrr@10"] == pytest.approx(np.mean([1 / r for r in ranks]))
    s = q @ p[:3].T
    own = s[[0, 1, 2, 3], [0, 1, 2, 0]]
    assert found["loss"] == pytest.approx(np.mean(np.log(np.exp(s).sum(1)) - own))


def test_words_as_numbers() -> None:
    x = encoded(["The sky, the SEA!", "", "one"], 3)
    the, sky = (zlib.crc32(w) & 0x7FFFFFFF for w in (b"the", b"sky"))
    assert x[0].tolist() == [the, sky, the] and x[1].tolist() == [-1] * 3 and x[2, 1:].tolist() == [-1, -1]
    both, there = paired(["a", "", "b"], ["c", "d", "e"], 2)
    assert both.shape == (2, 2, 2) and there.tolist() == [0, 2]


def test_of_a_table(tmp_path: Path) -> None:
    rows = {"ask": ["who", "what", None, "when"], "text": ["me", "this", "that", ""], "owner": ["a", "b", "a", "b"]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    pq.write_table(pa.table({n: v[:2] for n, v in rows.items()}), tmp_path / "test.parquet")
    spec = {"name": f"parquet:{tmp_path}", "question": "ask", "passage": "text", "client": "owner", "length": 2}
    d = data.load(Named.model_validate(spec), 0)
    assert d.kind == d.form == "pairs" and d.train.x.shape == (2, 2, 2) and d.train.client is not None
    assert d.train.client.tolist() == ["a", "b"] and [n for n in d.notes if n.startswith("2 rows of")]
    alone = {n: v for n, v in spec.items() if n != "passage"}
    assert data.check(Named.model_validate(alone)) == [
        "task.data.passage: missing; a pair has a column of questions and one of passages"
    ]
    with pytest.raises(ConfigError, match="has no column 'texts'"):
        data.load(Named.model_validate({**spec, "passage": "texts"}), 0)


def test_everybody_is_scored_on_everybodys_rows() -> None:
    own, every = (
        toy.federation(toy.config("fedavg", **toy.merge(toy.PAIRS, {"federation": {"split": {"tests": t}}})))
        for t in ("own", "all")
    )
    assert all(np.array_equal(every.test[c], np.sort(own.test.rows)) for c in range(every.clients))
    assert np.array_equal(own.train.rows, every.train.rows)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_training_finds_passages(executor: str) -> None:
    changes = toy.merge(
        toy.PAIRS,
        {
            "task": {"data": {"examples": 600}, "model": {"dim": 16}},
            "local": {"epochs": 4, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.02}},
        },
    )
    done = toy.simulate("fedavg", executor=executor, rounds=6, **changes)
    first, last = (done._replace(state=s).scores()[0] for s in (done.initial, done.state))
    assert last["hit@5/global"] > first["hit@5/global"] + 0.2 and last["cosine/personal"] > first["cosine/personal"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("e", ""),
        ("e[:, 0]", "needed: (4, 2, any), (rows, question and passage, d)"),
    ],
)
def test_an_own_encoder_is_tried_before_anything_starts(answer: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        f"""
from torch import nn
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(64, 8)
    def forward(self, x):
        e = self.words(x.clamp(min=0).long() % 64).sum(-2)
        return {answer}
def build(classes, input_shape):
    return Own()
""",
        encoding="utf-8",
    )
    changes = toy.merge(toy.PAIRS, {"task": {"model": {"name": f"{tmp_path}/own.py:build"}}})
    c = toy.config("fedavg", **changes)
    asked = model_check.question(c, toy.federation(c))
    assert asked is not None
    found = model_check.check_models({"run": asked})["run"]
    assert (says in found[0]) if says else not found
