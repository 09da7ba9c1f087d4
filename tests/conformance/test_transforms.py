"""Chains of transforms under the conformance checks: equal under loop and vmap, resumed, lost, reordered, empty."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayfed import methods
from rayfed.methods._bases.over_lora import OverLoRA
from tests.conformance import checks
from tests.conformance.checks import Case

CHECKS = [
    checks.two_rounds_run,
    checks.loop_is_vmap,
    checks.debug_is_loop,
    checks.resumes,
    checks.order_and_workers_change_nothing,
    checks.lost_calls_change_nothing,
    checks.payload_is_the_wires,
    checks.states_survive_the_disk,
    checks.scoring_changes_nothing,
    checks.empty_rounds_pass,
]
CLIP, NOISE = {"kind": "clip", "norm": 0.3}, {"kind": "gaussian", "noise_multiplier": 0.5}
EVERYONE = {"federation": {"per_round": None}}
CHAINS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "clip": ([{**CLIP, "quantile": 0.5}], {}),
    "topk": ([{"kind": "topk", "fraction": 0.2}, {"kind": "quantise", "bits": 8}], {}),
    "quantise": ([{"kind": "quantise", "bits": 4, "error_feedback": True}], {}),
    "sign": ([{"kind": "sign"}], {}),
    "randomk": ([{"kind": "randomk", "fraction": 0.3, "unbiased": False, "error_feedback": True}], {}),
    "lowrank": ([{"kind": "lowrank", "rank": 1}], {}),
    "gaussian": ([CLIP, {**NOISE, "accountant": "none"}], EVERYONE),
    "local": ([CLIP, {**NOISE, "where": "local", "accountant": "none"}, {"kind": "quantise", "bits": 8}], {}),
    "turns": ([CLIP, {**NOISE, "bands": 2}], {"federation": {"participation": {"kind": "cyclic"}}}),
    "private": ([{**CLIP, "quantile": 0.5, "count_noise": 1.0}, NOISE], EVERYONE),
    "mask": ([CLIP, {"kind": "quantise", "bits": 12, "range": 0.3}, {"kind": "mask", "neighbours": 2}], {}),
}
SUMS_ONLY = ("private", "turns", "mask")  # which SCAFFOLD cannot have: it sends more than updates
CASES = [
    pytest.param(
        Case(method, {"transforms": chain, **changes}),
        id=f"{name}-{method}",
        marks=[]
        if method == "fedavg" or (name, method) in (("topk", "scaffold"), ("clip", "fedit"))
        else [pytest.mark.slow],
    )
    for name, (chain, changes) in CHAINS.items()
    for method in ("fedavg", "scaffold", "fedit")
    if method != "scaffold" or name not in SUMS_ONLY
]


@pytest.fixture
def fit(on_bert: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Case], Case]:
    def give(case: Case) -> Case:
        return case._replace(changes=on_bert(case.changes)) if issubclass(methods.get(case.name), OverLoRA) else case

    return give


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("case", CASES)
def test_chain(case: Case, check: Callable[[Case, Path], None], fit: Callable[[Case], Case], tmp_path: Path) -> None:
    if check is checks.payload_is_the_wires and case.changes["transforms"][0].get("quantile"):
        pytest.skip("the engine's own sums travel beside the wire's parts")
    check(fit(case), tmp_path)
