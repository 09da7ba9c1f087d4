"""The backdoor's mark."""

from __future__ import annotations

import numpy as np

from tests.unit.attack.attacks import ROWS, drawn, make

IMAGES = ROWS._replace(kind="image", high=1.0)


def test_the_mark_of_images_is_a_square_of_the_largest_value() -> None:
    x = np.zeros((2, 1, 4, 4))
    marked = make("trigger", target=0, size=2).stamp(x, IMAGES)
    assert marked[0, 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]] and not x.any()


def test_the_mark_of_vectors_is_their_end() -> None:
    assert make("trigger", target=0, size=2).stamp(np.zeros((1, 4)), ROWS).tolist() == [[0, 0, 9, 9]]


def test_a_share_of_the_rows_of_other_classes_is_marked() -> None:
    x, y = np.zeros((8, 3)), np.array([0, 1, 2, 3, 1, 2, 3, 2])
    new, labels = make("trigger", target=2, share=0.5, size=1).poison(x, y, ROWS, drawn())
    marked = new[:, -1] == 9
    assert marked.sum() == 3 and (labels[marked] == 2).all() and (y[marked] != 2).all()  # half of five, rounded up
    assert (labels[~marked] == y[~marked]).all() and not x.any()


def test_data_without_such_a_mark_are_refused() -> None:
    assert (
        make("trigger", target=0).fits(ROWS._replace(kind="text"))
        == "kind: trigger found, these data are text; allowed: images and vectors"
    )
    assert make("trigger", target=4).fits(ROWS) == "target: 4 found, allowed: 0 to 3"
