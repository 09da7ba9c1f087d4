"""Inputs normalised by what the clients that take part train on."""

from __future__ import annotations

import numpy as np
import pytest

from rayfed import partition
from rayfed.config.schema import Config
from rayfed.data import Dataset, Part
from tests.configs import refusal


def asked(normalise: str, model: str = "linear") -> Config:
    task = {"data": "digits", "model": model, "normalise": normalise}
    f = {"clients": 8, "holdout": {"kind": "clients", "fraction": 0.25}}
    return Config.from_dict({"task": task, "method": "fedavg", "federation": f})


def images(kind: str = "image") -> Dataset:
    x = np.random.default_rng(0).random((240, 2, 3, 3)).astype(np.float32) * np.array([1, 9], np.float32)[:, None, None]
    x = x if kind == "image" else x.reshape(240, 18)
    y = np.arange(240) % 4
    return Dataset("made", Part(x[:200], y[:200]), Part(x[200:], y[200:]), 4, ("a", "b", "c", "d"), kind)


@pytest.mark.parametrize(("kind", "over"), [("image", (0, 2, 3)), ("tabular", (0,))])
def test_mean_and_deviation_are_of_the_training_clients_rows(kind: str, over: tuple[int, ...]) -> None:
    plain, made = (partition.build(asked(n), images(kind)) for n in ("none", "clients"))
    rows = np.concatenate([made.train[c] for c in range(made.population)])
    assert made.population == 6 and len(rows) < len(made.train.rows)
    x = made.arrays["x"]
    assert np.abs(x[rows].mean(over, dtype=np.float64)).max() < 1e-5
    assert np.abs(x[rows].std(over, dtype=np.float64) - 1).max() < 1e-5
    held = plain.arrays["x"][rows].astype(np.float64)
    wanted = (plain.arrays["x"] - held.mean(over, keepdims=True)) / held.std(over, keepdims=True)
    assert np.allclose(x, wanted, atol=1e-5) and x.dtype == np.float32
    assert "(task.normalise): mean [" in made.notes[-1] and not plain.notes
    assert partition.split_key(asked("none").to_dict()) != partition.split_key(asked("clients").to_dict())


def test_other_data_and_pretrained_models_are_refused() -> None:
    d = images()
    texts = Dataset(
        "words",
        Part(np.arange(8).reshape(4, 2), d.train.y[:4]),
        Part(np.arange(2).reshape(1, 2), d.test.y[:1]),
        4,
        d.label_names,
        "text",
    )
    from rayfed.partition.normalise import normalised

    assert refusal(normalised, asked("clients"), texts, texts.train.x, np.arange(4)) == (
        "task.normalise: clients found, words holds no images or numbers; allowed: none"
    )
    assert "normalises as its folder says" in refusal(normalised, asked("clients", "hf:x"), d, d.train.x, np.arange(4))
