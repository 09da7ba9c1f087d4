"""Chains that make no sense, refused before anything starts, each with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from rayfed.launch import model_check
from rayfed.transform import checks
from tests import toy
from tests.configs import good, problems, the_problem

CLIP: dict[str, Any] = {"kind": "clip", "norm": 1.0}
NOISE: dict[str, Any] = {"kind": "gaussian", "noise_multiplier": 1.0}
RANGE: dict[str, Any] = {"kind": "quantise", "bits": 8, "range": 1.0}
MASK: dict[str, Any] = {"kind": "mask"}
TOPK: dict[str, Any] = {"kind": "topk", "fraction": 0.1}


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        (["clip"], "transforms.0.norm: missing"),
        ([{"kind": "klip"}], "transforms.0.kind: 'klip' found (did you mean 'clip'?), allowed: clip, gaussian, "),
        ([{**CLIP, "nrom": 2}], "transforms.0.nrom: unknown key (did you mean 'norm'?)"),
        ([{**CLIP, "rate": 0.5}], "transforms.0.rate: 0.5 found, but nothing reads it with quantile: None"),
        ([{**TOPK, "fraction": 0}], "transforms.0.fraction: 0 found"),
        ([TOPK, TOPK], "transforms.1.kind: topk found twice, allowed: one of topk, randomk or lowrank"),
        ([RANGE, {"kind": "sign"}], "transforms.1.kind: sign found beside quantise, allowed: one of quantise or sign"),
        ([TOPK, CLIP], "transforms.1.kind: clip found after topk, allowed in this order: clip, gaussian, topk, "),
        ([NOISE, CLIP], "transforms.1.kind: clip found after gaussian"),
        ([MASK, RANGE], "transforms.1.kind: quantise found after mask"),
        ([NOISE], "transforms.0.kind: gaussian found, but nothing bounds the updates"),
        ([MASK], "transforms.0.kind: mask found, but masks are added to whole numbers, not to floats"),
        ([CLIP, MASK], "transforms.1.kind: mask found, but masks are added to whole numbers, not to floats"),
        (
            [{"kind": "quantise"}, MASK],
            "transforms.1.kind: mask found, but quantise gives each client scales of its own",
        ),
        ([TOPK, RANGE, MASK], "transforms.2.kind: mask found, but topk leaves other entries of each client"),
        ([CLIP, NOISE, RANGE, MASK], "transforms.1.where: central found, but under mask"),
        (
            [{**CLIP, "quantile": 0.5}, RANGE, MASK],
            "transforms.0.quantile: 0.5 found, but whether an update is clipped would be",
        ),
        ([{**CLIP, "quantile": 0.5}, {**NOISE, "where": "local"}], "transforms.0.quantile: 0.5 found, but whether"),
        (
            [{**CLIP, "quantile": 0.5, "count_noise": 0.3}, NOISE],
            "transforms.0.count_noise: 0.3 found, allowed with noise_multiplier 1: more",
        ),
        (
            [CLIP, {**NOISE, "accountant": "none", "delta": 1e-6}],
            "transforms.1.delta: 1e-06 found, but nothing reads it",
        ),
        (
            [TOPK, {"kind": "sign", "error_feedback": True}],
            "transforms.1.error_feedback: true found after topk, which sends other entries or",
        ),
        (
            [{"kind": "lowrank"}, {"kind": "quantise", "error_feedback": True}],
            "transforms.1.error_feedback: true found after lowrank",
        ),
        (
            [{"kind": "randomk", "fraction": 0.1, "error_feedback": True}],
            "transforms.0.error_feedback: True found, but nothing reads it with unbiased: True",
        ),
        ([3], "transforms.0: 3 found"),
        ({"kind": "clip"}, "transforms: {'kind': 'clip'} found"),
    ],
)
def test_a_chain_that_makes_no_sense_is_refused(transforms: Any, said: str) -> None:
    found = problems(transforms=transforms)
    assert any(p.startswith(said) for p in found), found


@pytest.mark.parametrize(
    "transforms", [[], [CLIP], [CLIP, NOISE], [CLIP, {**NOISE, "where": "local"}, RANGE, MASK], [TOPK, RANGE]]
)
def test_others_are_taken(transforms: list[Any]) -> None:
    assert good(transforms=transforms).to_dict()["transforms"] == transforms


@pytest.mark.parametrize("before", [TOPK, {"kind": "randomk", "fraction": 0.1}, {"kind": "lowrank"}])
def test_signs_keep_nothing_of_their_own_behind_a_compressor(before: dict[str, Any]) -> None:
    done = toy.simulate(transforms=[before, "sign"], rounds=2)
    assert all(bool(x.isfinite().all()) for x in done.state["model"].values())


def test_a_misspelt_section_is_told_from_others() -> None:
    assert the_problem(transform=[]).startswith("transform: unknown key (did you mean 'transforms'?)")


def test_what_a_method_sends_beside_its_updates_is_said() -> None:
    for transforms in ([CLIP, NOISE], [RANGE, MASK]):
        found = problems(transforms=transforms, method="scaffold")
        assert any("also send dc" in p for p in found), found
    good(transforms=[CLIP, {**NOISE, "accountant": "none"}], method="scaffold")
    assert "clients of local_only send no update" in the_problem(transforms=[CLIP], method="local_only")


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        ([RANGE, MASK], "aggregate.kind: median found, allowed with mask: mean"),
        ([CLIP, {**NOISE, "accountant": "none"}], "aggregate.kind: median found, allowed with central noise: mean"),
        ([{**CLIP, "quantile": 0.5}], "aggregate.kind: median found, allowed with transforms.0.quantile: mean"),
    ],
)
def test_a_rule_that_needs_single_updates_is_refused_where_there_are_sums(transforms: list[Any], said: str) -> None:
    assert any(p.startswith(said) for p in problems(transforms=transforms, aggregate="median"))


def test_a_rule_sees_what_the_server_decodes() -> None:
    """Coordinates of updates that are clipped to a small norm have small medians."""
    done = toy.simulate(transforms=[{"kind": "clip", "norm": 1e-3}], aggregate="median", rounds=1)
    moved = max(float((x - done.initial["model"][n]).abs().max()) for n, x in done.state["model"].items())
    assert 0 < moved < 1e-3


def test_a_server_that_reads_who_replied_has_no_epsilon() -> None:
    assert "the server of fedavgm reads more of its replies than means and sums" in the_problem(
        transforms=[CLIP, NOISE], method="fedavgm"
    )
    good(transforms=[CLIP, {**NOISE, "where": "local"}], method="fedavgm")


def test_a_subclass_with_a_program_of_its_own_says_itself_that_it_reads_sums_only() -> None:
    from rayfed.methods.fedavg import FedAvg

    class Own(FedAvg):
        def round(self, state: Any, fed: Any, task: Any) -> Any:
            return state

    class Same(FedAvg):
        pass

    assert checks._sums_only(Same) and not checks._sums_only(Own)


def test_fixed_draws_have_no_epsilon() -> None:
    found = problems(transforms=[CLIP, NOISE], federation={"clients": 20, "per_round": 5})
    assert any(p.startswith("federation.participation.kind: uniform found") for p in found)


@pytest.mark.parametrize("name", ["pfedrec", "fraug", "fedpurel", "fedala", "fedoa", "fedamd", "fdlora", "frl"])
def test_methods_with_steps_of_their_own_take_no_privacy_of_examples(name: str) -> None:
    from rayfed import methods

    c = good(local={"privacy": {"norm": 1.0, "noise_multiplier": 1.0, "accountant": "none"}})
    assert checks.example_rules(c, methods.get("fedavg")) == []
    (said,) = checks.example_rules(c, methods.get(name))
    assert said.startswith("local.privacy: ") and "allowed: null" in said


@pytest.mark.parametrize("late", [{"deadline_s": 9.0}, {"over_select": 2}])
def test_who_is_in_time_is_no_draw_of_which_there_is_an_epsilon(late: dict[str, Any]) -> None:
    poisson = {"clients": 20, "per_round": 5, "participation": {"kind": "poisson"}}
    more = {"federation": poisson, "failures": {"stragglers": late}, "devices": {"profile": "lognormal", "sigma": 1.0}}
    found = problems(transforms=[CLIP, NOISE], **more)
    assert any(p.startswith(f"failures.stragglers.{next(iter(late))}: ") and "epsilon" in p for p in found), found
    good(transforms=[CLIP, {**NOISE, "accountant": "none"}], **more)


def test_the_extra_is_named_where_no_accountant_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfed.privacy.importlib.util.find_spec", lambda name: None)
    poisson = {"clients": 20, "per_round": 5, "participation": {"kind": "poisson"}}
    said = the_problem(transforms=[CLIP, NOISE], federation=poisson)
    assert (
        "transforms.1.accountant: auto found, which needs prv_accountant: pip install 'rayfed-engine[privacy]'" in said
    )
    good(transforms=[CLIP, {**NOISE, "accountant": "none"}], federation=poisson)


def test_a_budget_that_cannot_be_kept_is_refused_with_the_noise_that_keeps_it() -> None:
    from rayfed import privacy

    said = the_problem(transforms=[CLIP, {**NOISE, "epsilon": 2.0}], rounds=10)
    spent = privacy.epsilon("exact", 1.0, 1.0, 10, 1e-5)
    assert f"10 rounds with noise_multiplier 1 spend {spent:.3g}; allowed: noise_multiplier of at least " in said
    z = float(said.partition("noise_multiplier of at least ")[2].partition(",")[0])
    assert privacy.epsilon("exact", 1.0, z, 10, 1e-5) <= 2.0 < privacy.epsilon("exact", 1.0, 0.99 * z, 10, 1e-5)
    good(transforms=[CLIP, {**NOISE, "noise_multiplier": z, "epsilon": 2.0}], rounds=10)


def test_unequal_ranks_are_refused(on_bert: Any) -> None:
    from rayfed.errors import ConfigError

    changes = on_bert({"adapter": {"kind": "lora", "rank": {1: 0.5, 2: 0.5}, "alpha": 8}, "transforms": [CLIP]})
    with pytest.raises(ConfigError, match="transforms: clip found, but the adapter has unequal ranks"):
        toy.config("fedit", **changes)


def test_memory_of_updates_without_a_declared_size_is_refused(on_bert: Any) -> None:
    from rayfed.errors import ConfigError

    with pytest.raises(
        ConfigError,
        match=r"transforms.0.error_feedback: true found, but slora sends updates of no declared size \(sparse_delta\)",
    ):
        toy.config("slora", **on_bert({"transforms": [TOPK]}))


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        ([CLIP, NOISE], "gaussian"),
        ([CLIP, {**NOISE, "accountant": "none"}], "gaussian"),
        ([CLIP, {**NOISE, "where": "local"}], "gaussian"),
        ([RANGE, MASK], "without a mask"),
    ],
)
def test_running_statistics_are_refused_where_they_would_show(nets: Any, chain: list[Any], why: str) -> None:
    c = toy.config(transforms=chain, **{**nets("batchnorm"), "federation": {"per_round": None}})
    question = model_check.question(c, toy.federation(c))
    assert question is not None and why in str(question.no_buffers)
    assert any(why in p for p in model_check.check_models({"": question})[""])
