"""Constructed pictures of real digits: what is where, whose rows they are, what options are allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import data
from rayfed.config.schema import Named


def made(kind: str, seed: int = 0, **options: Any) -> data.Dataset:
    return data.load(Named.model_validate({"name": f"scenes:{kind}", **options}), seed)


def test_anomalies_are_tested_and_never_trained_on() -> None:
    d, real = made("anomalies", normal=3), data.load(Named.model_validate("digits"), 0)
    assert np.unique(d.train.y).tolist() == [0, 1, 2] and np.array_equal(d.test.x, real.test.x)
    assert len(d.train.y) == int((real.train.y < 3).sum())


def test_strokes_have_nested_masks_at_unequal_sites() -> None:
    d = made("strokes", examples=60, test=12, sites=4)
    masks = d.train.columns["masks"]
    assert masks.shape == (len(d.train.y), 24, 24) and np.unique(masks).tolist() == [0, 1, 2, 3]
    for k in (1, 2, 3):  # brighter within
        assert d.train.x[:, 0][masks == k].mean() > d.train.x[:, 0][masks == k - 1].mean() + 0.03
    assert d.train.client is not None and d.test.client is not None
    sizes = np.unique(d.train.client, return_counts=True)[1]
    assert sizes.tolist() == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[-1]
    assert np.unique(d.test.client, return_counts=True)[1].tolist() == [3] * 4
    again, other = made("strokes", examples=60, test=12, sites=4), made("strokes", 1, examples=60, test=12, sites=4)
    assert np.array_equal(d.train.x, again.train.x) and not np.array_equal(d.train.x, other.train.x)


def test_objects_stand_apart_in_their_boxes() -> None:
    d = made("objects", examples=40, test=20, size=28, noise=0.0)
    boxes = d.train.columns["boxes"]
    for image, of in zip(d.train.x[:, 0], boxes, strict=True):
        there = of[of[:, 0] >= 0].astype(int)
        inside = np.zeros((28, 28), int)
        for _, left, top, right, bottom in there:
            inside[top:bottom, left:right] += 1
            assert image[top:bottom, left:right].max() > image[inside == 0].mean()
        assert len(there) and inside.max() == 1  # none touches another
        assert (np.diff(of[:, 0] < 0) >= 0).all()  # what is not there comes last
    assert np.array_equal(d.train.y, boxes[:, 0, 0]) and d.train.domain is not None
    assert set(d.train.domain) == {"clear", "dark", "blurred", "noisy"}


def test_partners_stand_beside_the_first_and_weather_is_seen() -> None:
    d = made("objects", examples=60, test=0, partners=1.0, classes=4, shift=1.0)
    boxes = d.train.columns["boxes"]
    of, there = boxes[:, :1, 0], boxes[:, 1:, 0] >= 0
    assert ((boxes[:, 1:, 0] == (of + 2) % 4) | ~there).all() and there.any()
    assert d.train.domain is not None
    light = {w: d.train.x[d.train.domain == w].mean() for w in ("clear", "dark")}
    assert light["dark"] < 0.6 * light["clear"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"name": "scenes:object"}, "did you mean"),
        ({"name": "scenes:objects", "size": 8}, "task.data.size: 8 found, allowed: a whole number from 20 to 256"),
        ({"name": "scenes:strokes", "noise": True}, "task.data.noise: True found, allowed: a number from 0 to 1"),
        (
            {"name": "scenes:strokes", "examples": 10**6, "size": 256},
            "scenes:strokes of 1,000,240 pictures of 256x256 takes",
        ),
        ({"name": "scenes:anomalies", "norml": 4}, "task.data.norml: unknown option of scenes:anomalies"),
    ],
)
def test_check_names_what_is_wrong(spec: dict[str, Any], says: str) -> None:
    (problem,) = data.check(Named.model_validate(spec))
    assert says in problem
