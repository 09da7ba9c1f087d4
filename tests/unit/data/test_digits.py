"""The bundled digits."""

from __future__ import annotations

import numpy as np

from tests.unit.data.sets import check, load, same


def test_digits_are_the_bundled_images_and_36_of_each_are_the_test_set() -> None:
    from sklearn.datasets import load_digits

    d, whole = load("digits"), load_digits()
    assert (d.kind, d.classes, d.input_shape, d.label_names) == ("image", 10, (1, 8, 8), tuple("0123456789"))
    assert (len(d.train.y), len(d.test.y)) == (1437, 360)
    assert np.bincount(d.test.y).tolist() == [36] * 10
    assert d.train.x.dtype == np.float32 and d.train.y.dtype == np.int64
    assert d.train.x.min() == 0 and d.train.x.max() == 1

    def rows(x: np.ndarray, y: np.ndarray) -> list[list[int]]:
        return sorted(np.concatenate([np.rint(x.reshape(len(x), -1) * 16), y[:, None]], 1).astype(np.int8).tolist())

    both = rows(np.concatenate([d.train.x, d.test.x]), np.concatenate([d.train.y, d.test.y]))
    assert both == rows(whole.images / 16, whole.target)


def test_the_test_digits_are_the_same_for_every_seed() -> None:
    first = load("digits", 0)
    for seed in (1, 2**40):
        again = load("digits", seed)
        assert same(first.train, again.train) and same(first.test, again.test)


def test_digits_have_no_options() -> None:
    assert check("digits", size=8) == ["task.data.size: unknown option of digits; known: none"]
