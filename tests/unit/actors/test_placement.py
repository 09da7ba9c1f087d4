"""Where actors go: plans and refusals on made-up nodes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

import actors
from actors.placement import Plan, nodes_of, plan_largest, plan_placement, shrink
from rayfed.errors import PlacementError
from tests import toy

SMALL = {"CPU": 2.0, "GPU": 0.0}
BOX = {"CPU": 8.0, "GPU": 2.0}


def planned(*nodes: Mapping[str, float], per_round: int = 12, **resources: Any) -> Plan:
    """The plan for twelve calls a round (one client each), so that CPUs and GPUs decide, not the work."""
    return plan_placement(toy.config(federation={"per_round": per_round}, resources={"cohort": 1, **resources}), nodes)


def refusal(*nodes: Mapping[str, float], **resources: Any) -> str:
    with pytest.raises(PlacementError) as caught:
        planned(*nodes, **resources)
    assert caught.value.exit_code == 3
    return str(caught.value)


# -- how many actors ---------------------------------------------------------------------------------------------------


def test_a_laptop_gets_one_actor_per_cpu() -> None:
    p = planned(SMALL)
    assert (p.actors, p.cpus, p.gpus, p.threads) == (2, 1.0, 0.0, 1)
    assert p.bundles() == [{"CPU": 1.0}, {"CPU": 1.0}]  # the server asks for nothing, so it has no bundle
    assert (p.server_cpus, p.server_gpus, p.server_anywhere) == (0, 0, False)


@pytest.mark.parametrize(
    ("resources", "count", "gpus"),
    [
        ({"gpus_per_actor": 0.5}, 4, 0.5),  # two into each card
        ({"gpus_per_actor": 0.3}, 6, 0.3),  # three into each card, and nothing across two cards
        ({"gpus_per_actor": 0.4}, 4, 0.4),  # not five, though 5 x 0.4 = 2
        ({"gpus_per_actor": 0.1}, 8, 0.1),  # twenty by card, eight by CPU
        ({"gpus_per_actor": 0.5, "cpus_per_actor": 3}, 2, 0.5),
        ({"gpus_per_actor": 2}, 1, 2.0),
        ({"gpus_per_actor": 0}, 8, 0.0),
        ({}, 2, 1.0),  # auto: a whole card each
        ({"actors": 2}, 2, 1.0),
        ({"actors": 3}, 3, 0.5),  # auto with a number of actors: the share that lets them all in
        ({"actors": 6}, 6, 1 / 3),
        ({"actors": 7}, 7, 0.25),
    ],
)
def test_shares_of_two_cards(resources: dict[str, Any], count: int, gpus: float) -> None:
    p = planned(BOX, **resources)
    assert (p.actors, p.gpus) == (count, pytest.approx(gpus))
    assert len(p.bundles()) == count
    assert all(b.get("GPU", 0.0) == pytest.approx(gpus) for b in p.bundles())


def test_an_actor_never_spans_nodes() -> None:
    assert planned({"CPU": 4}, {"CPU": 3}, cpus_per_actor=2).actors == 3
    assert planned({"CPU": 3}, {"CPU": 3}, cpus_per_actor=2).actors == 2  # not three, though 6 / 2 = 3
    said = refusal({"CPU": 3}, {"CPU": 3}, cpus_per_actor=2, actors=3)
    assert "3 actors asked, 2 fit on a node with 3 CPU and 0 GPU, a node with 3 CPU and 0 GPU" in said
    assert planned({"CPU": 4, "GPU": 1}, {"CPU": 16}, gpus_per_actor=0.5).actors == 2  # CPUs without a card do not help


def test_a_mixed_cluster_counts_each_nodes_own_bottleneck() -> None:
    nodes = [{"CPU": 2, "GPU": 4}, {"CPU": 32, "GPU": 1}, {"CPU": 64, "GPU": 0}]
    assert planned(*nodes, gpus_per_actor=0.5).actors == 2 + 2  # by CPU on the first, by card on the second


@pytest.mark.parametrize(
    ("per_round", "cohort", "count"),
    [(12, 1, 12), (12, 5, 3), (4, 4, 1), (12, "auto", 2)],
)
def test_no_more_actors_than_a_round_has_calls(per_round: int, cohort: Any, count: int) -> None:
    assert planned({"CPU": 64}, per_round=per_round, cohort=cohort).actors == count


def test_a_number_of_actors_is_kept_even_if_some_will_wait() -> None:
    assert planned({"CPU": 64}, per_round=2, actors=9).actors == 9


def test_a_study_is_placed_as_its_largest_run() -> None:
    configs = [toy.config(federation={"per_round": k}, resources={"cohort": 1}) for k in (2, 6, 3)]
    assert plan_largest(configs, [{"CPU": 8}]).actors == 6


def test_tenths_of_a_cpu_all_count() -> None:
    assert planned({"CPU": 1, "GPU": 1}, cpus_per_actor=0.1, gpus_per_actor=0.1, actors=10).actors == 10


def test_auto_finds_all_tenths_of_a_cpu() -> None:
    assert planned({"CPU": 1, "GPU": 1}, cpus_per_actor=0.1, gpus_per_actor=0.1).actors == 10


def test_threads_never_oversubscribe() -> None:
    for cpus, per_actor, asked in itertools.product((1, 2, 3, 8, 96), (1, 1.5, 2, 2.9, 5), ("auto", 1, 2)):
        try:
            p = planned({"CPU": cpus}, cpus_per_actor=per_actor, actors=asked)
        except PlacementError:
            assert cpus < per_actor * (1 if asked == "auto" else asked)
            continue
        assert p.threads == int(per_actor)
        assert p.actors * p.threads <= p.actors * p.cpus <= cpus
    assert planned(SMALL, cpus_per_actor=0.5, actors=4).threads == 1  # torch cannot have less


# -- the server --------------------------------------------------------------------------------------------------------


def test_the_server_gets_its_share_first() -> None:
    p = planned(SMALL, server={"cpus": 1})
    assert p.actors == 1
    assert p.bundles() == [{"CPU": 1.0}, {"CPU": 1.0}]
    assert planned({"CPU": 8}, server={"cpus": 3}, cpus_per_actor=2).actors == 2


def test_the_servers_card() -> None:
    p = planned(BOX, actors=1, gpus_per_actor=1, server={"gpus": 1, "place": "any"})
    assert p.server_anywhere
    assert p.bundles() == [{"CPU": 1.0, "GPU": 1.0}, {"GPU": 1.0}]


def test_actors_make_room_for_the_servers_card() -> None:
    assert planned(BOX, server={"gpus": 1}).actors == 1


def test_a_server_that_fits_on_no_node_is_refused() -> None:
    assert "resources.server" in refusal(*[{"CPU": 1}] * 4, server={"cpus": 2})


@pytest.mark.parametrize("server", [{"cpus": 1}, {"gpus": 1}])
def test_a_server_without_room_is_refused(server: dict[str, float]) -> None:
    said = refusal(SMALL, actors=2, server=server)
    assert f"resources.server={{cpus: {server.get('cpus', 0)}, gpus: {server.get('gpus', 0)}}}" in said
    assert "2 client actors of 1 CPU and 0 GPU" in said
    assert "a node with 2 CPU and 0 GPU" in said
    assert "Lower resources.actors or resources.server" in said


# -- refusals: what was asked, what there is, what to change -------------------------------------------------------------


def test_a_gpu_where_there_is_none() -> None:
    said = refusal(SMALL, gpus_per_actor=0.5)
    assert "resources.gpus_per_actor=0.5" in said
    assert "a node with 2 CPU and 0 GPU" in said
    assert "There is no GPU: set resources.gpus_per_actor=0 (or auto)" in said


def test_too_many_actors() -> None:
    said = refusal(SMALL, actors=3)
    assert "resources.actors=3" in said
    assert "3 actors asked, 2 fit on a node with 2 CPU and 0 GPU" in said
    assert "Lower resources.actors, resources.cpus_per_actor or resources.gpus_per_actor" in said


@pytest.mark.parametrize("resources", [{"cpus_per_actor": 4}, {"cpus_per_actor": 9, "gpus_per_actor": 0}])
def test_an_actor_larger_than_every_node(resources: dict[str, Any]) -> None:
    said = refusal(SMALL, {"CPU": 3, "GPU": 1}, **resources)
    assert f"resources.cpus_per_actor={resources['cpus_per_actor']}" in said
    assert "0 fit on a node with 2 CPU and 0 GPU, a node with 3 CPU and 1 GPU" in said
    assert "lower resources.cpus_per_actor" in said


def test_an_empty_cluster() -> None:
    assert "no node" in refusal()


# -- what there is -------------------------------------------------------------------------------------------------------


def test_dead_nodes_and_other_resources_do_not_count() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 1e9, "node:10.0.0.1": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {"object_store_memory": 1e9}},  # a head without CPUs
    ]
    assert nodes_of(nodes) == [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 0.0, "GPU": 0.0}]
    assert planned(*nodes_of(nodes), gpus_per_actor=0).actors == 4


def test_actors_is_ours_and_planning_needs_neither_ray_nor_torch() -> None:
    root = toy.Path(__file__).parents[3]
    assert toy.Path(actors.__file__).parent == root / "actors"
    code = (
        "import sys; import actors.driver; from actors.placement import plan_placement\n"
        "from rayfed.launch.preflight import load_request\n"
        "print(plan_placement(load_request('fedavg'), [{'CPU': 4}]).actors)\n"
        "print([m for m in ('ray', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["2", "[]"], done.stderr


def test_a_plan_shrinks_to_what_others_leave() -> None:
    plan = Plan(actors=4, cpus=1.0, gpus=0.0, threads=1, server_cpus=0.0, server_gpus=0.0, server_anywhere=False)
    assert shrink(plan, {"CPU": 3.0}, 1).actors == 3
    assert shrink(plan, {"CPU": 9.0}, 1) == plan
    assert shrink(plan, {}, 1).actors == 1 and shrink(plan, {"CPU": 1.0}, 4) == plan
    with_server = Plan(4, 1.0, 0.5, 1, 1.0, 0.0, False)
    assert shrink(with_server, {"CPU": 4.0, "GPU": 1.0}, 1).actors == 2
    assert shrink(with_server, {"CPU": 3.0, "GPU": 4.0}, 1).actors == 2
