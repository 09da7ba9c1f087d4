"""Points: the grid, draws, and the config at each."""

from __future__ import annotations

import json

from tests import toy
from tests.unit.tune_spaces.tools import RAW, space_of
from tune_spaces.sweep.points import config_at, draw_points, grid_points


def test_spaces_multiply() -> None:
    space = space_of("clusters", "participation", "heterogeneity")
    grid = grid_points(space)
    assert len(grid) == len({json.dumps(p) for p in grid}) == 27
    made = [config_at(toy.config(RAW["method"]).to_dict(), space.fixed, p) for p in grid]
    assert {(c.method.options["clusters"], c.federation.per_round, c.federation.partition.alpha) for c in made} == {
        (k, share, alpha) for k in (2, 3, 5) for share in (0.1, 0.3, 1.0) for alpha in (0.1, 0.5, 5.0)
    }


def test_draws_repeat_and_differ() -> None:
    space = space_of("local_work:continuous", "clusters")
    one, again, other = draw_points(space, 8, 3), draw_points(space, 8, 3), draw_points(space, 8, 4)
    assert one == again != other and all(type(p["local.optimizer.lr"]) is float for p in one)
    assert sorted(p["method.clusters"] for p in draw_points(space_of("clusters"), 10, 1)) == [2, 3, 5], "no point twice"
