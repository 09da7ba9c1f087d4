"""What importing costs: the process that reads configs never loads torch, the engine never loads Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

DIGITS = """
from rayfed import partition
from rayfed.launch.preflight import load_request
made = load_request({
    "task": {"data": "digits", "model": "mlp"},
    "federation": {"clients": 12, "partition": {"kind": "dirichlet", "alpha": 0.3}},
    "method": "fedavg",
})
assert partition.build(made).clients == 12
"""


def loaded(code: str) -> set[str]:
    """Modules of a fresh interpreter after `code`."""
    report = "\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        # one interpreter for what must be light together
        "import rayfed, rayfed.cli, rayfed.config.schema, rayfed.data, rayfed.partition, rayfed.engine.runner, rayfed.methods.fedavg",
        DIGITS,
        "import actors.driver",
    ],
    ids=["modules", "digits", "driver"],
)
def test_no_torch_and_no_ray(code: str) -> None:
    got = loaded(code)
    assert "rayfed" in got and "torch" not in got
    assert "ray" not in got  # the driver too joins Ray only when asked to
    assert "sklearn" not in got and "pandas" not in got  # a second and more, before the first round


def test_the_engine_computes_without_ray() -> None:
    """A round of training by hand: torch, from its first use on, but no Ray."""
    got = loaded(
        "import sys\nfrom rayfed.engine.runner import Runner, torch\nassert 'torch' not in sys.modules\ntorch.zeros(1)\n"
        "from tests import toy\nassert toy.simulate(rounds=1).rows[0]['visits'] == 7"
    )
    assert "torch" in got and "rayfed.engine.runner" in got
    assert not {m for m in got if m == "ray" or m.startswith(("ray.", "actors"))}


def test_actors_is_this_repositorys_package() -> None:
    import actors
    import rayfed

    assert Path(str(actors.__file__)).resolve() == ROOT / "actors" / "__init__.py"
    assert Path(str(rayfed.__file__)).resolve() == ROOT / "rayfed" / "__init__.py"
