"""Methods over two families of models: loop = vmap, resume, lost calls, order and workers, as with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import checks
from tests.conformance.checks import Case

TWO = {
    "small": {"name": "mlp", "hidden": [16], "share": 0.5},
    "large": {"name": "mlp", "hidden": [12, 16], "share": 0.5},
}
NORMED = {**TWO, "large": {"name": f"{Path(__file__).parents[1] / 'own_nets.py'}:batchnorm", "share": 0.5}}
CHECKED = [
    checks.two_rounds_run,
    checks.loop_is_vmap,
    checks.compiled_is_vmap,
    checks.debug_is_loop,
    checks.resumes,
    checks.order_and_workers_change_nothing,
    checks.lost_calls_change_nothing,
    checks.states_survive_the_disk,
    checks.scoring_changes_nothing,
    checks.empty_rounds_pass,
]
PUBLIC = {"federation": {"public": {"rows": 40}}}
CASES: list[tuple[Any, dict[str, Any]]] = [
    ("local_only", {"task": {"model": NORMED}, "local": {"buffers": "private"}}),
    ("fedproto", {"task": {"model": TWO}}),
    ({"name": "fedgh", "server_batch": 3}, {"task": {"model": TWO}}),
    ("fedre", {"task": {"model": TWO}}),
    ("fedsa", {"task": {"model": TWO}}),
    ("lg_fedavg", {"task": {"model": TWO}, "transforms": [{"kind": "topk", "fraction": 0.5}]}),
    ("fedmd", {"task": {"model": TWO}, **PUBLIC}),
    ({"name": "fedd2s", "samples": 1, "server_steps": 2}, {"task": {"model": TWO}}),
    ({"name": "disue_families", "iterations": 1, "student_steps": 1, "batch": 4}, {"task": {"model": TWO}}),
]


@pytest.mark.parametrize("check", CHECKED, ids=lambda c: c.__name__)
@pytest.mark.parametrize("case", CASES, ids=[m if isinstance(m, str) else m["name"] for m, _ in CASES])
def test_with_two_families(case: Any, check: Callable[[Case, Path], None], tmp_path: Path) -> None:
    check(Case(*case), tmp_path)
