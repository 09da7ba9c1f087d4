"""Spaces: ready ones, own files, what they set for a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfed.config.load import load_config
from tests import toy
from tests.unit.tune_spaces.tools import RAW, space_of
from tune_spaces.sweep.points import check_points, config_at, draw_points, grid_points
from tune_spaces.sweep.spaces import load_spaces


@pytest.mark.parametrize(
    "name",
    ["clusters:both", "distillation", "distillation:mix", "distillation:losses", "heterogeneity:groups", "heterogeneity:kinds",
     "heterogeneity:quantity", "heterogeneity:continuous", "local_work:both", "participation:kind", "participation:continuous",
     "robustness:rules", "robustness:attacks", "robustness:methods"],
)  # fmt: skip
def test_every_part_fits_a_config(name: str) -> None:
    images = {"data": {"name": "digits"}, "model": {"name": "mlp"}}
    base = toy.config({"name": "disue", "clusters": 3}, task=images)
    problems: list[str] = []
    space = load_spaces([name], base, problems)
    found = grid_points(space) if space.finite else draw_points(space, 6, 1)
    configs = check_points(base.to_dict(), space, found, problems)
    assert not problems and len(configs) == len(found) > 2


def test_a_space_follows_the_config() -> None:
    assert list(space_of("local_work").swept) == ["local.epochs"]
    steps = toy.config(RAW["method"]).model_copy(
        update={"local": load_config({**RAW, "local": {"steps": 3}}).local}  # type: ignore[union-attr]
    )
    assert list(load_spaces(["local_work"], steps, []).swept) == ["local.steps"]
    assert space_of("heterogeneity").fixed == {"federation.partition.kind": "dirichlet"}
    longtail = {"federation": {"partition": {"kind": "longtail", "alpha": 1.0}}}
    assert space_of("heterogeneity", **longtail).fixed == {"federation.partition.kind": "longtail"}
    iid = space_of("heterogeneity", federation={"partition": {"kind": "iid"}})
    made = config_at(
        toy.config("fedavg", federation={"partition": {"kind": "iid"}}).to_dict(),
        iid.fixed,
        {"federation.partition.alpha": 2.0},
    )
    assert made.federation.partition.kind == "dirichlet"


def test_what_is_set_is_not_swept() -> None:
    swept = space_of("clusters", "participation", sets=("method.clusters=4",)).swept
    assert list(swept) == ["federation.per_round"]


OWN = """
from ray import tune
space = {"local.optimizer.lr": tune.loguniform(1e-3, 1e-1), "method.weight": tune.choice(["one", "examples"])}
fixed = {"rounds": 3, "method.clusters": tune.grid_search([1, 2])}
helper = 3
def broken(config):
    return config.nothing
"""


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    space = space_of(str(file))
    assert set(space.swept) == {"local.optimizer.lr", "method.weight"} and not space.finite
    part = space_of(f"{file}:fixed")
    assert part.fixed == {"rounds": 3} and grid_points(part) == [{"method.clusters": 1}, {"method.clusters": 2}]
    problems: list[str] = []
    load_spaces([f"{file}:helper", f"{file}:brokn", f"{file}:broken"], toy.config("fedavg"), problems)
    assert "has no 'helper'" in problems[0] and "it has: space, fixed, broken" in problems[0]
    assert "did you mean 'broken'" in problems[1] and "AttributeError" in problems[2]
