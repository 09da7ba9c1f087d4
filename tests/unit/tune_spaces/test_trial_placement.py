"""How many actors a trial has, and how many trials run at a time."""

from __future__ import annotations

import pytest

from actors.placement import Plan
from rayfed.errors import PlacementError
from tests import toy
from tune_spaces.sweep.trial_placement import check_fits, count_fitting, place_trials, trial_bundles


def test_trials_at_the_same_time() -> None:
    eight = [{"CPU": 8.0, "GPU": 0.0}]
    configs = [toy.config("fedavg", resources={"actors": "auto", "cohort": 1})]
    alone = place_trials(configs, eight, None)
    assert (alone.trial.actors, alone.at_once) == (7, 1)  # seven clients per round
    shared = place_trials(configs, eight, 3)
    assert (shared.trial.actors, shared.at_once) == (2, 3)
    two = place_trials([toy.config("fedavg", resources={"actors": 2})], eight, None)
    assert (two.trial.actors, two.at_once) == (2, 4)
    with pytest.raises(PlacementError, match=r"resources\.actors=9"):
        place_trials([toy.config("fedavg", resources={"actors": 9})], eight, None)


def test_bundles_are_the_trial_and_its_actors() -> None:
    server = Plan(2, 1.0, 0.5, 1, 2.0, 0.0, False)
    assert trial_bundles(server) == [{"CPU": 2.0}, {"CPU": 1.0, "GPU": 0.5}, {"CPU": 1.0, "GPU": 0.5}]
    assert count_fitting(server, [{"CPU": 4.0, "GPU": 2.0}]) == 1
    assert count_fitting(server, [{"CPU": 8.0, "GPU": 1.0}]) == 1, "one card holds two halves"


def test_a_resumed_sweep_keeps_its_placement_or_is_refused() -> None:
    kept = Plan(2, 1.0, 0.0, 1, 1.0, 0.0, False)
    check_fits(kept, [{"CPU": 3.0}])
    with pytest.raises(
        PlacementError, match=r"planned with 2 client actors .* do not fit on a node with 2 CPU and 0 GPU"
    ):
        check_fits(kept, [{"CPU": 2.0}])
