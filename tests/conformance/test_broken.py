"""Every check has been red: a method broken in the way that the check is for does not pass it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rayfed.errors import ConfigError, RunFailed
from tests.conformance import checks
from tests.conformance.checks import CHECKS, Case, every_part_is_seen

HERE = Path(__file__).parent / "broken.py"
BROKEN = [
    (checks.two_rounds_run, "NotFinite"),
    (checks.loop_is_vmap, "UnkeyedNoise"),
    (checks.compiled_is_vmap, "UnkeyedNoise"),
    (checks.debug_is_loop, "UnkeyedNoise"),
    (checks.resumes, "Remembers"),
    (checks.order_and_workers_change_nothing, "Counts"),
    (checks.lost_calls_change_nothing, "Counts"),
    (checks.payload_is_the_wires, "Undeclared"),
    (checks.private_parts_stay, "Leaks"),
    (checks.states_survive_the_disk, "NumberInState"),
    (checks.sampling_is_the_engines, "OwnSampler"),
    (checks.again_is_the_same, "GlobalGenerator"),
    (checks.again_is_the_same, "Counts"),
    (checks.scoring_changes_nothing, "ServesInPlace"),
    (checks.empty_rounds_pass, "NobodyIsAnError"),
    (checks.later_rounds_add_nothing, "Hoards"),
    (checks.later_rounds_add_nothing, "GrowingShapes"),
    (checks.logged_names_have_a_meaning, "LogsSomething"),
    (checks.reading_rounds_is_said, "Fades"),
]


def case(name: str) -> Case:
    return Case({"name": f"{HERE}:{name}"})


@pytest.mark.parametrize(("check", "name"), BROKEN, ids=[f"{c.__name__}-{n}" for c, n in BROKEN])
def test_a_broken_method_is_caught(check: Callable[[Case, Path], None], name: str, tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        check(case(name), tmp_path)
    assert caught.type not in (NameError, ImportError, TypeError), caught.value  # broken as meant, not by a slip


def test_a_part_that_never_travels_is_caught() -> None:
    with pytest.raises(AssertionError, match="ghost"):
        every_part_is_seen([case("NeverSent")])


def test_every_check_has_been_red() -> None:
    assert {c for c, _ in BROKEN} == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("AsksALambda", "function AsksALambda.round.<locals>.<lambda>"),
        ("AsksAFunction", "function altered"),
    ],
)
def test_what_is_no_visit_of_the_method_is_named(name: str, found: str, tmp_path: Path) -> None:
    says = f"ask: {found} found; what is asked for is a method of {name} decorated with @visit"
    with pytest.raises(RunFailed, match=re.escape(says)):
        checks.two_rounds_run(case(name), tmp_path)


def test_a_visit_that_lost_its_decorator_is_refused_before_the_start(tmp_path: Path) -> None:
    says = "method.name: Undecorated.train has to be a visit (it stands in the place of FedAvg.train, which is one); decorate it"
    with pytest.raises(ConfigError, match=re.escape(says)):
        checks.two_rounds_run(case("Undecorated"), tmp_path)
