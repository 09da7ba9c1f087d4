"""The folders of a study's runs."""

from __future__ import annotations

from pathlib import Path

from rayfed.storage.study_folder import study_base, study_runs


def test_every_arm_has_every_seed() -> None:
    study = {"base": {"seed": 7, "rounds": 3}, "arms": {"a": {}, "b": None}, "seeds": [0, 2]}
    found = [(arm, seed, where.as_posix()) for arm, seed, where in study_runs(Path("s"), study)]
    assert found == [(a, s, f"s/{a}/seed-{s}") for a in ("a", "b") for s in (0, 2)]
    assert study_base(study) == study["base"]
    alone = {"seed": 7}
    assert list(study_runs(Path("s"), alone)) == [("run", 7, Path("s/run/seed-7"))] and study_base(alone) is alone
