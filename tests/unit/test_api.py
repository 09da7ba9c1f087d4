"""`rayfed.load`: tables, studies, and models ready to call - held against the scores that the run itself measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rayfed
from rayfed import partition, tree
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from tests import toy
from tests.conftest import ROOT


def made(method: toy.Spec, where: Path, **changes: Any) -> rayfed.Run:
    found = rayfed.load(toy.run_folder(method, where, **changes).folder.path)
    assert isinstance(found, rayfed.Run)
    return found


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> rayfed.Run:
    return made({"name": "ifca", "clusters": 3}, tmp_path_factory.mktemp("ifca"), rounds=2)


@pytest.mark.parametrize(
    "method", ["fedavg", "local_only", "fedavg_finetune", {"name": "ifca", "clusters": 3}], ids=str
)
def test_a_clients_model_has_the_scores_of_the_run(method: toy.Spec, tmp_path: Path) -> None:
    """Also of one that is fine-tuned to be served: with all of a client's examples in one batch, the order of the draw,
    which is a new one, does not matter."""
    whole = {"batch_size": 64}
    run = made(method, tmp_path, seed=2, local=whole)
    split = toy.federation(toy.config(method, seed=2, local=whole))
    rows = run.clients().to_pylist()
    assert len(rows) == 14 and sum(r["unseen"] for r in rows) == 2
    for row in rows:
        if not row["test_examples"]:
            continue
        mine = split.test.rows[split.test.offsets[row["client"]] : split.test.offsets[row["client"] + 1]]
        logits = run.model(client=row["client"])(split.arrays["x"][mine])
        loss = torch.nn.functional.cross_entropy(logits, torch.as_tensor(split.arrays["y"][mine]))
        assert float(loss) == pytest.approx(row["loss"], rel=1e-5)


def test_the_global_model_has_the_global_score(tmp_path: Path) -> None:
    run = made("fedavg", tmp_path)
    split = toy.federation(toy.config())
    model = run.model()
    found = model(split.arrays["x"][split.pooled_test]).argmax(1).numpy() == split.arrays["y"][split.pooled_test]
    assert found.mean() == pytest.approx(run.metrics()["accuracy/global"].to_pylist()[-1])
    module = model.module()
    x = torch.randn(3, 8)
    assert torch.equal(module(x), model(x)) and not model(x).requires_grad
    with torch.no_grad():
        next(module.parameters()).add_(1.0)
    assert not torch.equal(module(x), model(x))  # a copy: what is trained on is not what was loaded
    assert tree.same(dict(model), dict(run.model()))


def test_experts(clustered: rayfed.Run) -> None:
    names = clustered.models()
    assert names == ["expert-0", "expert-1", "expert-2"]
    rows = clustered.clients().to_pylist()
    known = next(r for r in rows if r["cluster"] is not None)
    x = np.random.default_rng(0).normal(size=(4, 8))
    expert = clustered.model(cluster=known["cluster"])
    assert torch.equal(expert(x), clustered.model(f"expert-{known['cluster']}")(x))
    with pytest.raises(ConfigError, match="no model 'model'; there are: expert-0, expert-1, expert-2"):
        clustered.model()
    with pytest.raises(ConfigError, match="no model 'expert-7'"):
        clustered.model(cluster=7)


def test_what_is_wrong_is_an_error(clustered: rayfed.Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="client: 14 found, allowed: 0 to 13"):
        clustered.model(client=14)
    with pytest.raises(ValueError, match=r"inputs of shape \(4, 7\) found, needed: \(B, 8\)"):
        clustered.model(cluster=0)(np.zeros((4, 7)))
    with pytest.raises(ConfigError, match="round 9 has rows of clients"):
        clustered.clients(9)
    assert clustered.clients(1)["round"].to_pylist() == [1] * 14
    similar = clustered.path.with_name(clustered.path.name[:-1])
    with pytest.raises(ConfigError, match=f"neither a run folder .*did you mean '{clustered.path.name}'"):
        rayfed.load(similar)
    with pytest.raises(ConfigError, match="neither a run folder"):
        rayfed.load(tmp_path)


def test_before_the_end(tmp_path: Path) -> None:
    run = made("fedavg", tmp_path, rounds=3, stop_after=1)
    assert run.summary is None and run.models() == []
    with pytest.raises(ConfigError, match="the run has not ended"):
        run.model()
    assert run.model(client=0)(np.zeros((1, 8))).shape == (1, 4)  # of the newest snapshot


def test_overrides_as_a_mapping() -> None:
    plain = load_request("fedavg", ["rounds=3", "federation.clients=20", "method.name=scaffold"])
    assert load_request("fedavg", {"rounds": 3, "federation": {"clients": 20}, "method.name": "scaffold"}) == plain
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        load_request("fedavg", {"rouns": 3})


def test_images_are_called_as_images(tmp_path: Path) -> None:
    task = {"data": "digits", "model": {"name": "cnn"}}
    run = made("fedavg", tmp_path, rounds=1, task=task, federation={"groups": {"kind": "none"}, "per_round": 2})
    assert run.model().input_shape == (1, 8, 8)
    x = partition.build(toy.config(task=task, federation={"groups": {"kind": "none"}})).arrays["x"][:3]
    assert run.model()(x).shape == (3, 10)


def test_readme_names_the_page() -> None:
    assert "docs/python.md" in (ROOT / "README.md").read_text()
