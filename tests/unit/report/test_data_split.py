"""The split of a report is the split of the run."""

from __future__ import annotations

from rayfed.report.data_split import DataSplit, data_split
from rayfed.report.subject import read_run
from rayfed.storage.run_folder import RunFolder
from tests.unit.report.folders import ME, page_of


def test_the_split_is_that_of_the_run(tmp_path):
    from rayfed import partition
    from rayfed.config.schema import Config

    content = {
        "seed": 4, "rounds": 1, "task": {"data": "digits", "model": {"name": "mlp", "hidden": [8]}},
        "federation": {"clients": 12, "partition": {"kind": "dirichlet", "alpha": 0.3},
                       "groups": {"kind": "rotation", "count": 2}, "holdout": {"kind": "clients", "fraction": 0.25}},
        "method": "fedavg",
    }  # fmt: skip
    folder = RunFolder.create(tmp_path, content, owner=ME)
    made = partition.build(Config.from_dict(content))
    sizes = made.class_counts.sum(1)
    folder.commit(1, {"accuracy/personal": 0.5}, [{"client": 3, "examples": int(sizes[3]), "accuracy": 0.5}])
    found = data_split(read_run(folder.path))
    assert isinstance(found, DataSplit), found
    assert (found.counts == made.class_counts).all() and (found.group == made.group).all()
    assert found.unseen.tolist() == [False] * made.population + [True] * (12 - made.population)
    text = page_of(folder.path).text
    assert f"12 clients hold {sizes.sum():,} training examples: {sizes.min():,} to {sizes.max():,}" in text
    other = RunFolder.create(tmp_path, content, owner=ME)
    other.commit(1, {}, [{"client": 3, "examples": int(sizes[3]) + 1, "accuracy": 0.5}])
    assert data_split(read_run(other.path)) == "the data is not what it was when the run was made"
    assert "the data is not what it was" in page_of(other.path).text
    far = RunFolder.create(tmp_path, {**content, "task": {"data": "parquet:nowhere", "model": "mlp"}}, owner=ME)
    assert "nowhere, is not here" in str(data_split(read_run(far.path)))
