"""A sweep's folder: what a resume reads is what the start wrote, and whose it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rayfed.errors import ConfigError
from rayfed.storage.events import read_events
from rayfed.storage.owner import Owner
from rayfed.storage.text_files import json_bytes
from tests.unit.tune_spaces.tools import RAW
from tune_spaces.sweep import folder
from tune_spaces.sweep.folder import SweepSettings
from tune_spaces.sweep.request import SweepOptions, SweepRequest, check_request
from tune_spaces.sweep.trial_placement import place_trials


def made(tmp_path: Path) -> tuple[SweepRequest, SweepSettings, Path]:
    own = tmp_path / "mine.py"
    own.write_text("from ray import tune\nspace = {'local.optimizer.lr': tune.loguniform(1e-3, 1e-1), 'rounds': 3}\n")
    options = SweepOptions(samples=2, seeds=(0, 1))
    request = check_request([str(own), "participation"], RAW, options, ["method.clusters=2"])
    settings = SweepSettings.of(request, place_trials(request.configs, [{"CPU": 4.0}], 2), "rayfed sweep ...")
    return request, settings, folder.make_folder(request, settings, tmp_path / "out")


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    request, settings, path = made(tmp_path)
    assert SweepSettings.read(path) == settings
    assert settings.trials == 2 and settings.options.seeds == (0, 1) and settings.mode == "max"
    assert settings.fixed == {"rounds": 3} and settings.points == request.points
    assert settings.swept["federation.per_round"] == [0.1, 0.3, 1.0]
    assert settings.swept["local.optimizer.lr"] == "float loguniform [0.001, 0.1]"
    assert len(list((path / "spaces").glob("*.json"))) == 1


def test_a_sweep_is_resumed_by_one_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, path = made(tmp_path)
    assert folder.open_folder(path) == path, "this process may"
    with pytest.raises(ConfigError, match=rf"no sweep to resume here .*did you mean '{path.name}'"):
        folder.open_folder(path.with_name(path.name[:-1]))
    me = Owner.me()
    elsewhere = dataclasses.replace(me, host="elsewhere")
    (path / "driver.json").write_bytes(json_bytes(dataclasses.asdict(elsewhere)))
    with pytest.raises(ConfigError, match=r"belongs to process \d+ on elsewhere, .*RAYFED_TAKE_OVER=1"):
        folder.open_folder(path)
    monkeypatch.setenv("RAYFED_TAKE_OVER", "1")
    folder.open_folder(path)
    parent = Owner(me.host, 1, Owner.me().start)
    monkeypatch.setattr(Owner, "alive", lambda self: True)
    (path / "driver.json").write_bytes(json_bytes(dataclasses.asdict(parent)))
    with pytest.raises(ConfigError, match="which still runs; stop it first"):
        folder.open_folder(path)
    folder.release(path)
    folder.open_folder(path)
    folder.take_over(path)
    assert Owner(**folder.read_json(path / "driver.json")) == me


OWN = "from rayfed.methods.fedavg import FedAvg\n\nclass Mine(FedAvg):\n    RATE = {}\n"


def test_code_that_was_changed_is_noticed(tmp_path: Path) -> None:
    """A resume is refused, or goes on and says so; once accepted, it is what the next one is compared with."""
    own, space = tmp_path / "own.py", tmp_path / "space.py"
    space.write_text("from ray import tune\nspace = {'local.optimizer.lr': tune.grid_search([0.1, 0.2])}\n")

    def request() -> SweepRequest:
        return check_request([str(space)], {**RAW, "method": f"{own}:Mine"}, SweepOptions(seeds=(0,)))

    own.write_text(OWN.format(1))
    first = request()
    settings = SweepSettings.of(first, place_trials(first.configs, [{"CPU": 4.0}], 2), "rayfed sweep ...")
    path = folder.make_folder(first, settings, tmp_path / "out")
    folder.check_changes(path, request(), accept=False)
    assert read_events(path) == []
    own.write_text(OWN.format(2))
    with pytest.raises(ConfigError, match=rf"code: {own} was changed\n.*--accept-changes"):
        folder.check_changes(path, request(), accept=False)
    folder.check_changes(path, request(), accept=True)
    (event,) = read_events(path)
    assert event["note"] == f"changed before a resume, and accepted: code: {own} was changed"
    folder.check_changes(path, request(), accept=False)
    assert set(folder.code_of(first)) >= {str(own), "rayfed.methods.fedavg"}, "shipped methods count too"
