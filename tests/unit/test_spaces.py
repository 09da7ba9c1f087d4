"""Sweeps before and after Ray: spaces, points, what is refused, placement, results; and runs advanced piece by piece."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.placement import Plan
from rayfed import cli
from rayfed.config.load import load_config
from rayfed.engine.client_states import ClientStore
from rayfed.engine.pool import LocalPool
from rayfed.engine.runner import Runner
from rayfed.errors import ConfigError, PlacementError, RunFailed
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from tests import toy

ray = pytest.importorskip("ray")
from tune_spaces.sweep import driver, points  # noqa: E402

RAW: dict[str, Any] = {**toy.TOY, "method": {"name": "ifca", "clusters": 3}}


def space_of(*names: str, sets: tuple[str, ...] = (), **changes: Any) -> points.Space:
    problems: list[str] = []
    found = points.load(names, toy.config(RAW["method"], **changes), problems, sets)
    assert not problems
    return found


def refused(*names: str, sets: tuple[str, ...] = (), config: Any = None, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        driver.prepare(names, config or RAW, driver.Options(**options), sets)
    return error.value.problems


# -- spaces ------------------------------------------------------------------------------------------------------------


def test_spaces_multiply() -> None:
    space = space_of("clusters", "participation", "heterogeneity")
    grid = points.grid(space)
    assert len(grid) == len({json.dumps(p) for p in grid}) == 27
    made = [points.config_of(toy.config(RAW["method"]).to_dict(), space.fixed, p) for p in grid]
    assert {(c.method.options["clusters"], c.federation.per_round, c.federation.partition.alpha) for c in made} == {
        (k, share, alpha) for k in (2, 3, 5) for share in (0.1, 0.3, 1.0) for alpha in (0.1, 0.5, 5.0)
    }


@pytest.mark.parametrize(
    "name",
    ["clusters:both", "distillation", "distillation:mix", "distillation:losses", "heterogeneity:groups", "heterogeneity:kinds",
     "heterogeneity:quantity", "heterogeneity:continuous", "local_work:both", "participation:kind", "participation:continuous"],
)  # fmt: skip
def test_every_part_fits_a_config(name: str) -> None:
    images = {"data": {"name": "digits"}, "model": {"name": "mlp"}}
    base = toy.config({"name": "disue", "clusters": 3}, task=images)
    problems: list[str] = []
    space = points.load([name], base, problems)
    found = points.grid(space) if space.finite else points.draw(space, 6, 1)
    configs = points.check(base.to_dict(), space, found, problems, lambda c: None)
    assert not problems and len(configs) == len(found) > 2


def test_a_space_follows_the_config() -> None:
    assert list(space_of("local_work").swept) == ["local.epochs"]
    steps = toy.config(RAW["method"]).model_copy(
        update={"local": load_config({**RAW, "local": {"steps": 3}}).local}  # type: ignore[union-attr]
    )
    assert list(points.load(["local_work"], steps, []).swept) == ["local.steps"]
    assert space_of("heterogeneity").fixed == {"federation.partition.kind": "dirichlet"}
    longtail = {"federation": {"partition": {"kind": "longtail", "alpha": 1.0}}}
    assert space_of("heterogeneity", **longtail).fixed == {"federation.partition.kind": "longtail"}
    iid = space_of("heterogeneity", federation={"partition": {"kind": "iid"}})
    made = points.config_of(
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
    assert part.fixed == {"rounds": 3} and points.grid(part) == [{"method.clusters": 1}, {"method.clusters": 2}]
    problems: list[str] = []
    points.load([f"{file}:helper", f"{file}:brokn", f"{file}:broken"], toy.config("fedavg"), problems)
    assert "has no 'helper'" in problems[0] and "it has: space, fixed, broken" in problems[0]
    assert "did you mean 'broken'" in problems[1] and "AttributeError" in problems[2]


def test_draws_repeat_and_differ() -> None:
    space = space_of("local_work:continuous", "clusters")
    one, again, other = points.draw(space, 8, 3), points.draw(space, 8, 3), points.draw(space, 8, 4)
    assert one == again != other and all(type(p["local.optimizer.lr"]) is float for p in one)
    assert sorted(p["method.clusters"] for p in points.draw(space_of("clusters"), 10, 1)) == [2, 3, 5], "no point twice"


def test_packing_for_a_searcher() -> None:
    categories = points.packed({"grid_search": [{"kind": "none"}, {"kind": "rotation", "count": 2}, 3]}).categories
    assert all(isinstance(c, points.PLAIN) for c in categories)
    assert [points.unpacked({"a": c})["a"] for c in categories] == [
        {"kind": "none"},
        {"kind": "rotation", "count": 2},
        3,
    ]


def test_pbt_stays_in_the_domain() -> None:
    space = space_of("local_work:continuous")
    assert points.inside({"local.optimizer.lr": 7.0}, space) == {"local.optimizer.lr": 1.0}
    assert points.inside({"local.optimizer.lr": 1e-9}, space) == {"local.optimizer.lr": 1e-3}
    assert points.inside({"local.optimizer.lr": 0.2}, space) == {"local.optimizer.lr": 0.2}


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_all_problems_at_once() -> None:
    found = refused(
        "clustrs", "clusters:bth", "nope.py", search="grd", scheduler="asa", seeds=(0, 0), metric="acc", samples=0
    )
    text = "\n".join(found)
    for piece in (
        "did you mean 'clusters'",
        "did you mean 'both'",
        "no file nope.py",
        "did you mean 'grid'",
        "did you mean 'asha'",
        "--seeds",
        "--metric",
        "--samples",
    ):
        assert piece in text, piece


def test_every_point_of_a_grid_is_tried(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from ray import tune\n"
        "space = {'federation.per_round': tune.grid_search([3, 12, 13]), 'method.clusters': tune.grid_search([0, 2])}\n"
    )
    found = refused(str(file))
    told = {p.partition(": ")[2]: p for p in found}
    (clusters,) = [p for t, p in told.items() if t.startswith("method.clusters: 0")]
    assert all(f"per_round={n} clusters=0" in clusters for n in (3, 12, 13)) and "clusters=2" not in clusters
    (share,) = [p for t, p in told.items() if t.startswith("federation.per_round: 13")]
    assert "per_round=13 clusters=2" in share and "per_round=12" not in share


def test_a_split_that_cannot_be_is_told_before_ray() -> None:
    few = {"data": {"name": "synthetic:blobs", "examples": 40, "classes": 4, "features": 8, "test": 10}}
    found = refused(
        "heterogeneity",
        config={**RAW, "task": {**RAW["task"], **few}, "federation": {**RAW["federation"], "clients": 39}},
    )
    assert found and all("40" in p or "examples" in p for p in found), found
    assert not ray.is_initialized()


def test_a_setting_in_two_spaces() -> None:
    assert "both clusters and clusters:both set it" in refused("clusters", "clusters:both")[0]


def test_searches_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is no list of values" in refused("local_work:continuous", search="grid")[0]
    assert "--seeds 0,1,2" in refused("clusters", search="grid", samples=3)[0]
    assert "cannot change in mid-run" in refused("heterogeneity", scheduler="pbt")[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "rayfed-engine[optuna]" in refused("clusters", search="optuna")[0]


def test_a_study_needs_an_arm() -> None:
    arms = {"a": {"method": {"name": "fedavg"}}, "b": {}}
    study = {**RAW, "arms": arms, "seeds": [4, 5]}
    assert "--arm a | b" in refused("participation", config=study)[0]
    made = driver.prepare(["participation"], study, driver.Options(), arm="a")
    assert made.base.method.name == "fedavg" and made.options.seeds == (4, 5) and made.options.search == "grid"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({**RAW, "resources": {"actors": 4000, "executor": "loop", "cohort": 2}}))

    def end(*args: Any) -> int:
        monkeypatch.setattr(sys, "argv", ["rayfed", "sweep", *map(str, args)])
        with pytest.raises(SystemExit) as error:
            cli.main()
        return int(error.value.code or 0)

    assert end("clustrs", file) == 2 and "did you mean 'clusters'" in capsys.readouterr().err
    assert end("clusters", file, "--out", tmp_path / "o", "--address", "local") == 3
    assert "4000 actors" in capsys.readouterr().err and not (tmp_path / "o").exists() and not ray.is_initialized()
    assert end() == 2 and "participation" in capsys.readouterr().err
    assert end("--resume", tmp_path) == 2 and "sweep.yaml" in capsys.readouterr().err
    assert end("--resume", tmp_path, "--out", tmp_path) == 2 and "leave out --out" in capsys.readouterr().err


# -- placement ---------------------------------------------------------------------------------------------------------


def test_trials_beside_each_other() -> None:
    eight = [{"CPU": 8.0, "GPU": 0.0}]
    configs = [toy.config("fedavg", resources={"actors": "auto", "cohort": 1})]
    alone, at_once = driver.trial_plan(configs, eight, None)
    assert (alone.actors, at_once) == (7, 1)  # seven clients per round
    shared, at_once = driver.trial_plan(configs, eight, 3)
    assert (shared.actors, at_once) == (2, 3)
    two, at_once = driver.trial_plan([toy.config("fedavg", resources={"actors": 2})], eight, None)
    assert (two.actors, at_once) == (2, 4)
    with pytest.raises(PlacementError, match=r"resources\.actors=9"):
        driver.trial_plan([toy.config("fedavg", resources={"actors": 9})], eight, None)


def test_bundles_are_the_trial_and_its_actors() -> None:
    server = Plan(2, 1.0, 0.5, 1, 2.0, 0.0, False)
    assert driver.bundles(server) == [{"CPU": 2.0}, {"CPU": 1.0, "GPU": 0.5}, {"CPU": 1.0, "GPU": 0.5}]
    assert driver.together(server, [{"CPU": 4.0, "GPU": 2.0}]) == 1
    assert driver.together(server, [{"CPU": 8.0, "GPU": 1.0}]) == 1, "one card holds two halves"


# -- a run in pieces ---------------------------------------------------------------------------------------------------

LONG = {"rounds": 5, "storage": {"snapshot_every": 2, "keep": 9}}


def seen(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if not k.startswith(toy.VOLATILE)} for r in folder.metrics().to_pylist()]


def test_a_run_in_pieces_is_the_run(tmp_path: Path) -> None:
    whole = toy.run_folder("scaffold", tmp_path / "whole", **LONG)
    c = toy.config("scaffold", **LONG)
    folder = RunFolder.create(tmp_path / "pieces", c.to_dict(), owner=Owner.me())
    runner = Runner(c, toy.federation(c), LocalPool(), folder)
    runner.prepare()
    assert [runner.advance(1), runner.advance(3), runner.advance(3)] == [1, 3, 3]
    assert (folder.path / "snapshots" / "round-000003").is_dir(), "where a piece ends, it can be cloned"
    assert runner.advance(99) == 5 and runner.finish().status == "done"
    assert seen(folder) == whole.rows and json.loads((folder.path / "summary.json").read_text())["rounds"] == 5


def test_a_piece_can_be_left(tmp_path: Path) -> None:
    c = toy.config("fedavg", **LONG)
    folder = RunFolder.create(tmp_path, c.to_dict(), owner=Owner.me())
    runner = Runner(c, toy.federation(c), LocalPool(), folder)
    runner.prepare()
    runner.advance(3)
    assert runner.finish() == ("stopped", 3) and not (folder.path / "summary.json").exists()
    again = Runner(c, toy.federation(c), LocalPool(), RunFolder.open(folder.path, owner=Owner.me()))
    assert again.execute() == ("done", 5)
    assert seen(folder) == toy.run_folder("fedavg", tmp_path / "whole", **LONG).rows


def test_a_clone_goes_on_as_the_run_did(tmp_path: Path) -> None:
    """Scaffold keeps states at clients: they must be in the clone too."""
    whole = toy.run_folder("scaffold", tmp_path / "whole", **LONG)
    c = toy.config("scaffold", **LONG)
    folder = RunFolder.clone(whole.folder.path, 2, tmp_path / "clone", c.to_dict(), owner=Owner.me())
    assert [r["round"] for r in folder.metrics().to_pylist()] == [1, 2] and len(folder.clients(2)) == 14
    assert folder.run_id != whole.folder.run_id
    assert Runner(c, toy.federation(c), LocalPool(), folder).execute() == ("done", 5)
    assert seen(folder) == whole.rows
    store = ClientStore(LocalPool())
    store.load(folder.path / "snapshots" / "round-000005", folder.path / "segments")
    assert {k: v.keys() for k, v in toy.states(store).items()} == {k: v.keys() for k, v in whole.clients.items()}
    with pytest.raises(RunFailed, match="round 3"):
        RunFolder.clone(whole.folder.path, 3, tmp_path / "other", c.to_dict(), owner=Owner.me())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clone", "whole"], "nothing half-made"
