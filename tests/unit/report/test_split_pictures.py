"""The split of a run as a picture, and the file of `rayfed partition`."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from rayfed.errors import ConfigError
from rayfed.report import split_pictures
from rayfed.report.picture import Picture
from rayfed.report.split_pictures import check, split_picture
from rayfed.report.subject import read_run
from rayfed.storage.run_folder import RunFolder
from tests.unit.partition import small
from tests.unit.report.folders import ME

SPLIT = {
    "seed": 1, "rounds": 1, "task": {"data": "digits", "model": "mlp"}, "method": "fedavg",
    "federation": {"clients": 12, "partition": {"kind": "dirichlet", "alpha": 0.3},
                   "groups": {"kind": "rotation", "count": 2}, "holdout": {"kind": "clients", "fraction": 0.25}},
}  # fmt: skip


def test_columns_are_clients_by_group_and_the_key_says_how_many(tmp_path):
    picture = split_picture(read_run(RunFolder.create(tmp_path, SPLIT, owner=ME).path), about=", seed 1")
    assert isinstance(picture, Picture) and picture.title.endswith(", seed 1") and "12 clients hold" in picture.note
    axis = Figure().add_subplot()
    picture.panels[0](axis)
    cells = axis.images[0].get_array()
    assert cells.shape == (10, 12, 4)
    key = [style["alpha"] for style in picture.key.values()]
    assert key == sorted(key) and set(np.unique(cells[..., 3])) <= {0.0, *key}
    assert next(iter(picture.key)).endswith(("example", "examples"))


@pytest.mark.parametrize(("file", "says"), [("p.jpg", "ends in .pdf, .svg, .png"), ("no/p.png", "is not a folder")])
def test_a_file_is_checked_before_anything_is_computed(tmp_path, file, says):
    with pytest.raises(ConfigError, match=says):
        check(tmp_path / file)
    check(tmp_path / "p.PNG")


def test_columns_are_by_group_then_by_what_clients_hold_most_of() -> None:
    described = small.one(
        clients=20, groups={"kind": "label_permutation", "count": 2}, holdout={"kind": "clients", "fraction": 0.2}
    )
    c = split_pictures._columns(described)
    assert sorted(c.order.tolist()) == list(range(20))
    assert [(w, b - a) for w, a, b in c.blocks] == [("group 0", 8), ("group 1", 8), ("unseen", 4)]
    assert c.sizes.tolist() == described.federation.train.sizes()[c.order].tolist()
    for _, a, b in c.blocks:
        main = described.federation.class_counts[c.order[a:b]].argmax(1)
        assert (np.diff(main) >= 0).all()
    by_size = split_pictures._columns(small.one(partition={"kind": "quantity", "alpha": 0.5}))
    assert (np.diff(by_size.sizes) <= 0).all() and by_size.blocks == [("", 0, 9)]


def test_more_clients_than_columns_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_pictures, "MAX_COLUMNS", 10)
    c = split_pictures._columns(small.one(clients=100, partition={"kind": "quantity", "alpha": 2}))
    assert (
        len(c.order) == len(set(c.order)) == 10
        and c.sizes[0]
        == small.one(clients=100, partition={"kind": "quantity", "alpha": 2}).federation.train.sizes().max()
    )
    assert small.size(split_pictures.png([small.one(clients=100)]))[0] > 500
