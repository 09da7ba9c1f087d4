"""`rayfed audit`: of noise the guesses stay below the reported epsilon, without noise they are all right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayfed.errors import ConfigError
from rayfed.launch.audit import Audit, _right, audit
from tests import toy

CANARIES = {
    "attacks": [{"kind": "canary", "clients": 30}],
    "federation": {"clients": 36, "per_round": None, "holdout": {"kind": "none"}},
}


def run(where: Path, noise: float, **more: Any) -> Path:
    chain = [{"kind": "clip", "norm": 1.0}, {"kind": "gaussian", "noise_multiplier": noise}]
    done = toy.run_folder(
        "fedavg", where, executor="vmap", transforms=chain, evaluate={"every": 2}, **{**CANARIES, **more}
    )
    return done.folder.path


def test_little_noise_shows_every_canary_and_much_noise_few(tmp_path: Path) -> None:
    loud_run = run(tmp_path / "loud", 0.01)
    loud, quiet = audit(loud_run), audit(run(tmp_path / "quiet", 8.0))
    assert loud.canaries == loud.guesses == 30 and loud.right >= 28 and loud.least > 1.5
    for found in (loud, quiet):
        assert found.claimed is not None and found.least < found.claimed and not found.broken
    assert quiet.least < loud.least
    with pytest.raises(ConfigError, match="--guesses: 31 found, allowed: 1 to 30"):
        audit(loud_run, guesses=31)


def test_guesses_by_hand() -> None:
    """Scores 5 4 and 3 2 1 have means 4.5 and 2, so above 3.25 is in; 1, 5 and 2 are the clearest."""
    inside = np.array([True, False, True, True, False])
    assert _right(inside, np.array([5.0, 4.0, 3.0, 2.0, 1.0]), 3) == 2
    assert _right(inside, np.array([5.0, 1.0, 4.0, 3.0, 2.0]), 5) == 4


def test_what_is_broken_is_said() -> None:
    found = Audit(10, 5, 10, 10, 1e-5, 0.95, 1.2, 0.5)
    assert found.broken and "MORE WAS SHOWN" in found.text() and not Audit(10, 5, 10, 10, 1e-5, 0.95, 1.2, None).broken


def test_a_run_without_canaries_is_refused(tmp_path: Path) -> None:
    folder = toy.run_folder("fedavg", tmp_path, rounds=1).folder.path
    with pytest.raises(ConfigError, match="the run has no canaries"):
        audit(folder)
    with pytest.raises(ConfigError, match="is not a run folder"):
        audit(tmp_path / "nothing")
