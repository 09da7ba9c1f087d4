"""Label flip."""

from __future__ import annotations

import numpy as np

from tests.configs import the_problem
from tests.unit.attack.attacks import ROWS, drawn, make

X, Y = np.arange(10.0).reshape(5, 2), np.array([0, 1, 2, 3, 1])


def test_every_class_becomes_its_mirror_image() -> None:
    x, y = make("label_flip").poison(X, Y, ROWS, drawn())
    assert x is X and y.tolist() == [3, 2, 1, 0, 2]


def test_one_class_becomes_another() -> None:
    _, y = make("label_flip", source=1, target=3).poison(X, Y, ROWS, drawn())
    assert y.tolist() == [0, 3, 2, 3, 3]


def test_what_cannot_be_is_refused() -> None:
    assert make("label_flip", source=1, target=4).fits(ROWS) == "target: 4 found, allowed: 0 to 3"
    assert make("label_flip").fits(ROWS._replace(kind="instruct")).startswith("kind: label_flip found")
    assert make("label_flip").fits(ROWS) is None
    sentence = the_problem("attacks=[{kind: label_flip, clients: 1, source: 2}]")
    assert sentence == "attacks.0.target: source and target belong together; set both or none"
