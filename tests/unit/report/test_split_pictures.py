"""The split of a run as a picture, and the file of `rayfed partition`."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from rayfed.errors import ConfigError
from rayfed.report.picture import Picture
from rayfed.report.split_pictures import check, split_picture
from rayfed.report.subject import read_run
from rayfed.storage.run_folder import RunFolder
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


@pytest.mark.parametrize(("file", "says"), [("p.jpg", "ends in .png"), ("no/p.png", "is not a folder")])
def test_a_file_is_checked_before_anything_is_computed(tmp_path, file, says):
    with pytest.raises(ConfigError, match=says):
        check(tmp_path / file)
    check(tmp_path / "p.PNG")
