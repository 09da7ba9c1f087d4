"""DisUE: what it reduces to, its three phases against NumPy and against the loop alone, ids that persist."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from rayfed import keys, mean, methods, tree
from rayfed.cluster import MISSING, canonical
from rayfed.distill import client_generators, datafree, statistics
from rayfed.distill.d_phase import DPhase
from rayfed.errors import ConfigError
from rayfed.launch.federations import Federations
from rayfed.methods.disue import DisUE, rotate
from rayfed.metrics import ari
from rayfed.visits import ClientContext, VisitMethod
from tests import toy

SHORT = {"iterations": 2, "student_steps": 2, "batch": 8, "noise": 4, "student_lr": 0.2}
DOUBLE = {"executor": "vmap", "dtype": "float64"}
needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")
needs_oracle = pytest.mark.skipif("oracle" not in methods.names(), reason="compared with oracle, which is not there")


def disue(**settings: Any) -> dict[str, Any]:
    return {"name": "disue", **SHORT, **settings}


def opposites(split: Any, n: int = 8) -> tuple[list[int], dict[str, Any]]:
    """Clients of two planted groups, the second with all labels flipped; everyone takes part in every round."""
    rng = np.random.default_rng(0)
    xs, group = [rng.normal(size=(24, 8)) for _ in range(n)], [0, 1, 1, 0] * (n // 4)
    split(xs, [(x[:, 0] > 0).astype(int) ^ g for x, g in zip(xs, group)], group=group)
    return group, {"federation": {"clients": n, "per_round": None, "holdout": {"kind": "none"}}}


def replies(done: toy.Result, model: tree.Tree, number: int = 1) -> Any:
    """What the round's clients sent, asked for once more from `model`."""
    fed = toy.make_fed(done.fed.config)
    fed.begin(number)
    return fed.ask(fed.method.train, fed.sample(), shared={"model": model})


def pieces(done: toy.Result, members: list[list[int]]) -> tuple[tree.Tree, list[tree.Tree], torch.Tensor]:
    """(average, experts, class counts) of round 1 for clusters given as client ids, from single updates, by hand."""
    start, got = done.initial["model"], replies(done, done.initial["model"])
    delta, n = got.gather("delta"), dict(zip(got.ids, got.examples.tolist()))

    def mean(clients: list[int]) -> tree.Tree:
        total = tree.zeros(start)
        for c in clients:
            total = tree.add(total, delta[c], n[c] / sum(n[i] for i in clients))
        return tree.add(start, total)

    counts = torch.as_tensor(np.stack([done.fed.federation.class_counts[m].sum(0) for m in members]))
    return mean(got.ids), [mean(m) for m in members], counts


def taught(done: toy.Result, members: list[list[int]], start: str = "average") -> tree.Tree:
    average, experts, counts = pieces(done, members)
    key = keys.key(done.fed.config.seed, 1 << 20, -1, "D-phase")
    student = average if start == "average" else done.initial["model"]
    return datafree.distill(
        done.fed.task, student, experts, counts, done.initial["generator"], done.fed.method.settings, key, 1
    )[0]


def close(a: tree.Tree, b: tree.Tree, atol: float = 1e-12) -> None:
    torch.testing.assert_close(tree.flatten(a), tree.flatten(b), rtol=0, atol=atol)


# -- what it reduces to ------------------------------------------------------------------------------------------------


@needs_fedavg
@pytest.mark.parametrize(
    ("settings", "executor"),
    [
        ({"distill": False}, "vmap"),
        ({"distill": False, "signature": "all"}, "loop"),
        ({"iterations": 0, "clusters": 1}, "vmap"),
        ({"distill_until": 0, "clusterer": "singletons"}, "vmap"),
        ({"distill": False, "clusterer": "oracle", "secure_similarity": "rotation"}, "vmap"),
        ({"iterations": 0, "clusterer": "least_loss"}, "vmap"),
    ],
    ids=str,
)
def test_without_a_d_phase_it_is_fedavg_to_the_bit(settings: dict[str, Any], executor: str) -> None:
    """For any clustering; the generator is as it was."""
    done = toy.simulate(disue(**settings), executor=executor)
    assert tree.same(done.state["model"], toy.simulate("fedavg", executor=executor).state["model"])
    assert tree.same(done.state["generator"], done.initial["generator"])
    assert not [n for r in done.rows for n in r if n.startswith("distill/")]


@needs_fedavg
@pytest.mark.parametrize("mix", ["prob", "logit"])
def test_one_cluster_teaches_the_average_nothing(mix: str) -> None:
    done = toy.simulate(disue(clusters=1, mix=mix), rounds=3, **DOUBLE)
    close(done.state["model"], toy.simulate("fedavg", rounds=3, **DOUBLE).state["model"])
    assert done.rows[-1]["distill/student"] == pytest.approx(0, abs=1e-12)
    assert set(done.fed.method.clusters(done.state).values()) == {0}
    three = toy.simulate(disue(clusters=3, mix=mix), rounds=3, **DOUBLE)
    assert float(tree.norm(tree.sub(three.state["model"], done.state["model"]))) > 1e-3


def test_singletons_are_client_level_distillation() -> None:
    """Every client of the round is an expert, weighted by its own class counts; absent clients do not count."""
    done = toy.simulate(disue(clusterer="singletons"), rounds=1, **DOUBLE)
    ids = done.fed.drawn[0].ids
    assert len(ids) == 7 and done.fed.method.clusters(done.state) == {c: i for i, c in enumerate(ids)}
    close(done.state["model"], taught(done, [[c] for c in ids]))


# -- L-phase -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signature", ["head", "all", "counts"])
def test_what_clients_send(signature: str) -> None:
    done = toy.simulate(disue(signature=signature), rounds=1, **DOUBLE)
    got = replies(done, done.initial["model"])
    for c, delta in got.gather("delta").items():
        want = {
            "head": torch.cat([delta["head.weight"].reshape(-1), delta["head.bias"]]),
            "all": tree.flatten(delta),
            "counts": torch.as_tensor(done.fed.federation.class_counts[c]).double(),
        }[signature]
        torch.testing.assert_close(got.gather("signature")[c], want / want.norm(), rtol=0, atol=1e-12)
        assert got.gather("counts")[c].tolist() == done.fed.federation.class_counts[c].tolist()


def test_rotation_is_orthogonal_and_pads_to_a_power_of_two() -> None:
    secret = torch.tensor(5)
    q = torch.stack([rotate(e, secret) for e in torch.eye(2, dtype=torch.float64)], 1)
    torch.testing.assert_close(q.T @ q, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-15)
    assert rotate(torch.ones(5), secret).shape == (8,) and rotate(torch.ones(8), secret).shape == (8,)


@pytest.mark.parametrize("q", [1, 2, 68, 128])
def test_rotation_keeps_inner_products_and_hides_the_rest(q: int) -> None:
    s = torch.randn(6, q, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned, other = (torch.stack([rotate(x, torch.tensor(k)) for x in s]) for k in (11, 12))
    torch.testing.assert_close(turned @ turned.T, s @ s.T, rtol=0, atol=1e-12)
    together = torch.vmap(rotate, in_dims=(0, None))(s, torch.tensor(11))
    torch.testing.assert_close(together, turned, rtol=0, atol=1e-14)
    if q > 2:
        padded = torch.nn.functional.pad(s, (0, turned.shape[1] - q))
        for a, b in ((turned, padded), (turned, other)):
            assert float(torch.cosine_similarity(a, b).abs().max()) < 0.5


@pytest.mark.parametrize("signature", ["head", "all", "counts"])
def test_secured_similarity_gives_the_same_partition(signature: str) -> None:
    """And so, to the bit, the same experts and the same universal expert."""
    plain, secure = (
        toy.simulate(disue(signature=signature, secure_similarity=s), rounds=3, **DOUBLE) for s in ("none", "rotation")
    )
    assert tree.same(plain.state, secure.state)
    one, two = (replies(d, d.initial["model"]).stacked("signature") for d in (plain, secure))
    torch.testing.assert_close(one @ one.T, two @ two.T, rtol=0, atol=1e-12)
    pad = torch.nn.functional.pad(one, (0, two.shape[1] - one.shape[1]))
    assert not torch.allclose(pad, two, atol=0.01)


# -- C-phase -----------------------------------------------------------------------------------------------------------


def test_clusters_and_experts_in_numpy(plain: Any) -> None:
    """Softmax regression on whole batches; SciPy clusters the updates; experts weigh their members by examples."""
    done = toy.simulate({"name": "disue", "distill": False}, rounds=1, **plain.WORK)
    start, ids = plain.vector(done.initial["model"]), done.fed.drawn[0].ids
    data = [plain.data(done.fed, c) for c in ids]
    u = np.stack([plain.descend(start, x, y) - start for x, y in data])
    s = u / np.linalg.norm(u, axis=1, keepdims=True)
    merges = linkage(squareform(1 - s @ s.T, checks=False), "average")
    labels = canonical(fcluster(merges, 3, "maxclust"))
    assert done.fed.method.clusters(done.state) == dict(zip(ids, labels.tolist()))
    n = np.array([len(y) for _, y in data], float)
    assert set(done.state["experts"]) == {"0", "1", "2"}
    for k in range(3):
        want = start + np.average(u[labels == k], axis=0, weights=n[labels == k])
        np.testing.assert_allclose(plain.vector(done.state["experts"][str(k)]), want, atol=1e-12)
    np.testing.assert_allclose(plain.vector(done.state["model"]), start + np.average(u, axis=0, weights=n), atol=1e-12)


def test_oracle_is_the_planted_groups() -> None:
    done = toy.simulate(disue(clusterer="oracle"), rounds=4, **DOUBLE)
    assert done.scores()[0]["clusters/ari"] == 1.0
    member, group = done.fed.method.clusters(done.state), done.fed.federation.group
    assert len({(group[c], k) for c, k in member.items()}) == len(set(group[:12])) == 3


def test_opposite_groups_are_found_and_keep_their_ids(split: Any) -> None:
    """From updates of the classifier alone, every round the same partition under the same ids."""
    group, changes = opposites(split)
    for rounds in (1, 2, 3):
        done = toy.simulate(disue(clusters=2), rounds=rounds, executor="vmap", **changes)
        assert done.state["assignment"].tolist() == group  # ids in the order of the first members
        assert done.scores()[0]["clusters/ari"] == 1.0


def test_names_of_groups_change_no_bit(split: Any) -> None:
    group, changes = opposites(split)
    one = toy.simulate(disue(clusterer="oracle"), executor="vmap", **changes)
    held = one.fed.federation
    xs, ys = ([held.arrays[n][held.train[c]] for c in range(8)] for n in ("x", "y"))
    split(xs, ys, group=[1 - g for g in group])
    assert tree.same(one.state, toy.simulate(disue(clusterer="oracle"), executor="vmap", **changes).state)


def test_ids_persist_and_absent_clients_keep_theirs() -> None:
    """Seven of twelve clients a round: an id once given to a planted group stays with all its members."""
    runs = [toy.simulate(disue(clusterer="oracle"), rounds=r, **DOUBLE) for r in (1, 2, 3, 4)]
    known: dict[int, int] = {}
    for done in runs:
        member = done.fed.method.clusters(done.state)
        assert member.keys() == {c for d in done.fed.drawn for c in d.ids}
        assert {c: member[c] for c in known} == known
        assert {str(k) for k in member.values()} == set(done.state["experts"])
        known = member
    assert any(set(known) - set(d.ids) for d in runs[-1].fed.drawn)
    assert ari([int(runs[0].fed.federation.group[c]) for c in known], list(known.values())) == 1.0


def test_oracle_ids_where_some_groups_are_absent() -> None:
    """Three clients a round, so that rounds lack whole groups: an id still means one planted group."""
    changes = {"federation": {"per_round": 3}}
    done = toy.simulate(disue(clusterer="oracle", distill=False), rounds=6, executor="vmap", **changes)
    member, group = done.fed.method.clusters(done.state), done.fed.federation.group
    assert any(len(set(group[list(d.ids)].tolist())) < 3 for d in done.fed.drawn)
    assert ari([int(group[c]) for c in member], list(member.values())) == 1.0


def test_ids_follow_experts_and_members(split: Any) -> None:
    """Clusters 4 and 7 come back in the other order, by what their experts look like or by who is in them."""
    _, changes = opposites(split)
    method = toy.make_fed(toy.config(disue(), executor="vmap", **changes)).method
    a, b = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
    labels, nobody = np.array([0, 1, 0]), torch.full((8,), -1)
    state = {"experts": {"4": a, "7": b}, "assignment": nobody}
    assert method.match_ids(state, [0, 1, 2], labels, [b, a]) == [7, 4]
    assert method.match_ids(state, [0, 1, 2], labels, [a, b]) == [4, 7]
    member = nobody.index_put((torch.tensor([0, 1, 2]),), torch.tensor([7, 4, 7]))
    assert method.match_ids({**state, "assignment": member}, [0, 1, 2], labels, [a, a]) == [7, 4]
    three = method.match_ids(state, [0, 1, 2], np.array([0, 1, 2]), [b, {"w": torch.tensor([0.5, 0.5])}, a])
    assert three == [7, 8, 4]
    assert method.match_ids({"experts": {}, "assignment": nobody}, [0, 1], np.array([0, 1]), [a, b]) == [0, 1]


def test_an_absent_groups_id_goes_to_no_stranger(split: Any) -> None:
    """Groups of ids 0, 1, 2; the first falls in two. Where the third is absent its id stays with it, else it is free."""
    _, changes = opposites(split)
    method = toy.make_fed(toy.config(disue(), executor="vmap", **changes)).method
    experts = {str(k): {"w": e} for k, e in enumerate(torch.eye(3))}
    state = {"experts": experts, "assignment": torch.tensor([0, 0, 1, 1, 2, 2, -1, -1])}
    pieces = [{"w": torch.tensor([1.0, 0.0, -0.1])}, {"w": torch.tensor([1.0, 0.0, -0.2])}]
    second = {"w": torch.tensor([0.0, 1.0, 0.3])}
    ids = method.match_ids(state, [0, 1, 2, 3], np.array([0, 1, 2, 2]), [*pieces, second])
    assert sorted(ids[:2]) == [0, 3] and ids[2] == 1
    together = [*pieces, {"w": torch.tensor([0.0, 0.6, 0.4])}]
    everyone = method.match_ids(state, [0, 1, 2, 3, 4, 5], np.array([0, 1, 2, 2, 2, 2]), together)
    assert sorted(everyone[:2]) == [0, 2] and everyone[2] == 1
    silent = method.match_ids(state, [0, 1, 2, 3, 4, 5], np.array([0, 1, 2, 2, MISSING, MISSING]), [*pieces, second])
    assert silent == ids
    friend = [pieces[0], {"w": torch.tensor([0.5, 0.0, 0.5])}, experts["1"]]
    assert method.match_ids(state, [0, 1, 2, 3], np.array([0, 1, 2, 2]), friend) == [0, 2, 1]  # like the absent one's
    alone = {"experts": {"0": experts["0"]}, "assignment": torch.tensor([0, -1])}
    assert method.match_ids(alone, [1], np.array([0]), [experts["1"]]) == [0]  # of one cluster there is one id


def test_absent_clients_are_served_their_own_expert(split: Any) -> None:
    """Three groups; in round 2 the last is away, and the others fall into three clusters."""
    rng = np.random.default_rng(0)
    xs, group = [rng.normal(size=(24, 8)) for _ in range(9)], [0, 1, 2] * 3
    split(xs, [(x[:, :3].argmax(1) + g) % 3 for x, g in zip(xs, group)], classes=3, group=group)

    class Away(toy.ToyFed):
        def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
            return tuple(c for c in super().sample(n, where=where) if self.round == 1 or group[c] < 2)

    changes = {"federation": {"clients": 9, "per_round": None, "holdout": {"kind": "none"}}}
    one, two = (toy.simulate(disue(distill=False), rounds=r, kind=Away, **DOUBLE, **changes) for r in (1, 2))
    assert one.state["assignment"].tolist() == group
    member, before = two.state["assignment"].tolist(), one.state["experts"]
    assert [member[c] for c in range(9) if group[c] == 2] == [2] * 3 and member.count(2) == 3
    assert tree.same(two.state["experts"]["2"], before["2"])
    assert len(two.state["experts"]) == 4 and not tree.same(two.state["experts"]["0"], before["0"])


def chosen(before: toy.Result, clients: tuple[int, ...], plain: Any) -> dict[int, int]:
    """NumPy: for each client, the id of the known expert with the least loss on its training data."""
    known = {int(k): plain.vector(e) for k, e in before.state["experts"].items()}
    best = {}
    for c in clients:
        x, y = plain.data(before.fed, c)
        losses = {k: plain.loss(e, x, y) for k, e in known.items()}
        best[c] = min(losses, key=lambda k: losses[k])
    return best


LEAST = {"name": "disue", "distill": False, "clusterer": "least_loss"}


def test_least_loss_joins_the_best_known_expert(plain: Any) -> None:
    one, two = (toy.simulate(LEAST, rounds=r, **plain.WORK) for r in (1, 2))
    best = chosen(one, two.fed.drawn[1].ids, plain)
    member = two.fed.method.clusters(two.state)
    assert len(set(best.values())) > 1
    assert canonical(np.array([member[c] for c in best])).tolist() == canonical(np.array([*best.values()])).tolist()


def test_least_loss_keeps_the_id_that_was_chosen(plain: Any) -> None:
    changes = toy.merge(plain.WORK, {"federation": {"per_round": 3}, "seed": 6})
    runs = [toy.simulate(LEAST, rounds=r, **changes) for r in range(1, 7)]
    assert all(len(before.state["experts"]) == 3 for before in runs)
    for before, after in pairwise(runs):
        best = chosen(before, after.fed.drawn[-1].ids, plain)
        member = after.fed.method.clusters(after.state)
        assert {c: member[c] for c in best} == best


def test_an_emptied_expert_stays_and_can_win_clients_back(plain: Any) -> None:
    changes = toy.merge(plain.WORK, {"federation": {"per_round": None}})
    one = toy.simulate(LEAST, rounds=1, **changes)
    fed, experts = one.fed, one.state["experts"]
    assert set(experts) == {"0", "1", "2"}

    def bad(k: str) -> tree.Tree:
        return tree.scale(experts[k], -50.0)

    away = {**one.state, "experts": {**experts, "2": bad("2")}}
    fed.begin(2)
    two = fed.method.round(away, fed, fed.task)
    assert set(two["assignment"].tolist()) <= {0, 1}
    assert len(two["experts"]) == 3 and tree.same(two["experts"]["2"], away["experts"]["2"])
    back = {**two, "experts": {"0": bad("0"), "1": bad("1"), "2": two["model"]}}
    fed.begin(3)
    three = fed.method.round(back, fed, fed.task)
    assert set(three["assignment"].tolist()) == {2}
    assert not tree.same(three["experts"]["2"], back["experts"]["2"])
    assert all(tree.same(three["experts"][k], back["experts"][k]) for k in "01")


@pytest.mark.parametrize(("kind", "visit"), [("least_loss", "score"), ("subspace", "bases")])
def test_who_does_not_reply_when_asked_again(kind: str, visit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In round 2 what a client sends the second time is NaN, so it is dropped: it keeps its id, a newcomer has none."""
    spec = disue(clusterer=kind, distill=False)
    one, whole = (toy.simulate(spec, rounds=r, **DOUBLE) for r in (1, 2))
    first, second = (d.ids for d in whole.fed.drawn)
    old, new = min(set(first) & set(second)), min(set(second) - set(first))
    silent: list[int] = []
    real = getattr(DisUE, visit)

    def failing(self: DisUE, task: Any) -> Any:
        made, bad = real.make(self, task), torch.tensor(silent)

        def end(client: ClientContext, carry: Any) -> Any:
            parts, own = made.end(client, carry)
            mute = (client.info.client == bad).any() & (client.info.round > 1)
            return tree.map(lambda x: torch.where(mute, torch.nan, x), parts), own

        return made._replace(end=end)

    registered = VisitMethod(failing)
    registered.__set_name__(DisUE, visit)
    monkeypatch.setattr(DisUE, visit, registered)
    drop = {**DOUBLE, "failures": {"client_error": "drop"}}
    silent[:] = [old, new]
    done = toy.simulate(spec, rounds=2, **drop)
    assert done.rows[1]["dropped"] == 2 and tree.same(done.state["model"], whole.state["model"])
    member, before = done.fed.method.clusters(done.state), one.fed.method.clusters(one.state)
    assert new not in member and member[old] == before[old]
    placed = [c for c in second if c not in silent]
    assert member.keys() == {*first, *placed}
    got = replies(done, one.state["model"], 2)
    delta, n = got.gather("delta"), dict(zip(got.ids, got.examples.tolist()))
    for k in {member[c] for c in placed}:
        want, here = one.state["model"], [c for c in placed if member[c] == k]
        for c in here:
            want = tree.add(want, delta[c], n[c] / sum(n[i] for i in here))
        close(done.state["experts"][str(k)], want)
    silent[:] = second
    none = toy.simulate(spec, rounds=2, **drop)
    assert tree.same(none.state, {**one.state, "model": whole.state["model"]})


# -- D-phase -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("init", "mix"), [("average", 1.0), ("previous", 1.0), ("average", 0.25), ("average", 0.0)])
def test_theta_is_what_the_loop_teaches_the_average(init: str, mix: float) -> None:
    """Planted groups as clusters; experts, counts and average by hand; theta = (1 - mix) average + mix distilled."""
    done = toy.simulate(
        disue(clusterer="oracle", student_init=init, distill_mix=mix, student_lr=2.0), rounds=1, **DOUBLE
    )
    ids, group = done.fed.drawn[0].ids, done.fed.federation.group
    members = [[c for c in ids if group[c] == g] for g in dict.fromkeys(group[list(ids)].tolist())]
    average, theta = pieces(done, members)[0], taught(done, members, init)
    close(done.state["model"], tree.add(tree.scale(average, 1 - mix), theta, mix))
    assert float(tree.norm(tree.sub(theta, average))) > 1e-3


@pytest.mark.parametrize(("inputs", "told"), [("statistics", "_told"), ("client_generators", "_generators")])
def test_where_nobody_tells_anything_the_round_s_training_stays(
    inputs: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = toy.simulate(disue(distill=False), executor="vmap")
    monkeypatch.setattr(DPhase, told, lambda *arguments: None)
    spec = {"name": "disue", "inputs": inputs, "student_init": "previous", "distill_mix": 0.5, "iterations": 2}
    assert tree.same(toy.simulate(spec, executor="vmap").state["model"], off.state["model"])


def test_experts_and_clusters_are_not_touched() -> None:
    """The control arm finds the same clusters and the same experts to the bit."""
    on, off = (toy.simulate(disue(distill=d), rounds=1, executor="vmap") for d in (True, False))
    assert tree.same(on.state["experts"], off.state["experts"])
    assert torch.equal(on.state["assignment"], off.state["assignment"])
    assert not tree.same(on.state["model"], off.state["model"])


def test_the_generator_is_kept_between_rounds() -> None:
    """Adam has counted every step so far, and an average of it that is asked for is kept as well."""
    runs = [
        toy.simulate(disue(generator_steps=3, generator_ema=0.5), rounds=r, executor="vmap").state["generator"]
        for r in (1, 2, 3)
    ]
    assert [float(g["adam"]["t"]) for g in runs] == [6.0, 12.0, 18.0]
    assert all("ema" in g and not tree.same(g["ema"], g["g"]) for g in runs)
    assert not tree.same(runs[0]["g"], runs[1]["g"])


@needs_fedavg
def test_after_the_stop_round_theta_is_the_plain_average() -> None:
    """The D-phase of round 2 is the last; round 3 is FedAvg's round from there, and the generator rests."""
    until = disue(distill_until=2)
    two, three = (toy.simulate(until, rounds=r, executor="vmap") for r in (2, 3))
    assert [("distill/student" in r) for r in three.rows] == [True, True, False]
    assert tree.same(two.state["generator"], three.state["generator"])
    fed = toy.make_fed(toy.config("fedavg", rounds=3, executor="vmap"))
    fed.begin(3)
    assert tree.same(three.state["model"], fed.method.round({"model": two.state["model"]}, fed, fed.task)["model"])
    never = toy.simulate(disue(distill_until=None), rounds=3, executor="vmap")
    assert "distill/student" in never.rows[-1]


# -- what is served ----------------------------------------------------------------------------------------------------


def test_members_are_served_their_expert_and_others_theta(plain: Any) -> None:
    """NumPy scores; who never took part, and the two held out, get theta."""
    done = toy.simulate(disue(), rounds=1, **plain.WORK)
    member = done.fed.method.clusters(done.state)
    theta = plain.vector(done.state["model"])
    experts = {int(k): plain.vector(e) for k, e in done.state["experts"].items()}
    row, clients = done.scores()
    for r in clients:
        assert r["cluster"] == member.get(r["client"])
        p = experts[r["cluster"]] if r["cluster"] is not None else theta
        assert r["loss"] == pytest.approx(plain.loss(p, *plain.data(done.fed, r["client"], "test")), abs=1e-12)
    assert sum(r["cluster"] is None for r in clients) == 7  # 5 that were not drawn, 2 held out
    pool = [done.fed.federation.arrays[n][done.fed.federation.pooled_test] for n in ("x", "y")]
    assert row["loss/global"] == pytest.approx(plain.loss(theta, *pool), abs=1e-12)


def test_a_round_without_replies_changes_nothing() -> None:
    done = toy.simulate(disue(), rounds=1, executor="vmap")

    class Nobody(toy.ToyFed):
        def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
            return ()

    fed = toy.make_fed(done.fed.config, kind=Nobody)
    fed.begin(2)
    assert tree.same(fed.method.round(done.state, fed, fed.task), done.state)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_oracle_needs_groups_and_kinds_need_names() -> None:
    with pytest.raises(ConfigError, match="planted groups"):
        toy.config(disue(clusterer="oracle"), federation={"groups": {"kind": "none"}})
    with pytest.raises(ConfigError, match="agglomerative"):
        toy.config(disue(clusterer="aglomerative"))
    with pytest.raises(ConfigError, match=r"federation\.probe: 0 found, method\.inputs"):
        toy.config(disue(inputs="probe"))
    with pytest.raises(ConfigError, match="threshold"):
        toy.config(disue(clusterer={"kind": "agglomerative", "threshold": 3.0}))


def test_a_model_without_a_classifier_has_no_signature_of_it(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom torch import nn\n\n"
        "def headless(classes, input_shape):\n    return nn.Linear(input_shape[0], classes)\n"
    )
    changes = {"task": {"model": f"{tmp_path / 'own.py'}:headless"}}
    refused = r"method.signature: head found, .* no trained classifier .* all, counts"
    Federations().of(toy.config(disue(), **changes))
    assert not (tmp_path / "ran").exists()  # the process that reads configs does not run what is the user's
    with pytest.raises(ConfigError, match=refused):
        toy.simulate(disue(clusterer="oracle"), rounds=1, **changes)
    done = toy.simulate(disue(signature="all"), rounds=1, **changes)
    assert len(done.state["experts"]) == 3


# -- features in place of inputs, what is kept, what is served -----------------------------------------------------------


@pytest.mark.parametrize("teacher", ["experts", "labels"])
def test_drawn_features_teach_the_last_layer_alone(teacher: str) -> None:
    on = {"name": "disue", "inputs": "statistics", "teacher": teacher, "batch": 8}
    done, plain = toy.simulate({**on, "iterations": 3}, rounds=1), toy.simulate("fedavg", rounds=1).state["model"]
    moved = {n for n, p in done.state["model"].items() if not torch.equal(p, plain[n])}
    assert moved == set(done.fed.task.classifier_names)
    assert tree.same(toy.simulate({**on, "iterations": 0}, rounds=1).state["model"], plain)


def test_equal_experts_teach_the_average_nothing_on_drawn_features() -> None:
    """One cluster: its expert is the average, whose last layer answers alike on any feature."""
    base = {"executor": "vmap", "dtype": "float64", "rounds": 1}
    done = toy.simulate({"name": "disue", "inputs": "statistics", "clusters": 1, "iterations": 3, "batch": 8}, **base)
    plain = toy.simulate("fedavg", **base).state["model"]
    torch.testing.assert_close(tree.flatten(done.state["model"]), tree.flatten(plain), rtol=0, atol=1e-12)


INPUTS = {"name": "disue", "inputs": "statistics", "space": "inputs", "covariance": "full", "iterations": 3, "batch": 8}


def test_drawn_inputs_teach_the_whole_model_and_each_client_sends_its_sums_once() -> None:
    done, plain = toy.simulate(INPUTS, rounds=3, **DOUBLE), toy.simulate("fedavg", rounds=1, **DOUBLE).state["model"]
    one = toy.simulate(INPUTS, rounds=1, **DOUBLE)
    assert all(not torch.equal(p, plain[n]) for n, p in one.state["model"].items())
    seen = sorted({c for d in done.fed.drawn for c in d.ids})
    asked = [row["visits"] - len(d.ids) for row, d in zip(done.rows, done.fed.drawn, strict=True)]
    assert sum(asked) == len(seen) and asked[0] == len(done.fed.drawn[0].ids)
    told, federation = done.state["statistics"], done.fed.federation
    assert told["by"].nonzero()[:, 0].tolist() == seen
    rows = np.concatenate([federation.train[c] for c in seen])
    x, y = federation.arrays["x"][rows].astype(float), federation.arrays["y"][rows]
    for c in range(done.fed.task.classes):
        own = x[y == c].reshape((y == c).sum(), -1)
        np.testing.assert_allclose(told["sums"][c], own.sum(0), atol=1e-9)
        np.testing.assert_allclose(told["squares"][c], own.T @ own, atol=1e-9)
    assert told["rows"].tolist() == np.bincount(y, minlength=done.fed.task.classes).tolist()


def test_experts_teach_only_classes_that_they_hold() -> None:
    """Of classes that only absent clients told of, nothing is drawn; labels alone may teach them."""
    seen: list[Any] = []

    def spy(of: Any, y: Any, *more: Any) -> Any:
        seen.extend(y.tolist())
        return original(of, y, *more)

    original = statistics.draw
    fed = toy.make_fed(toy.config({**INPUTS, "covariance": "diag"}, **DOUBLE))
    task, d = fed.task, fed.task.input_shape[0]
    of = statistics.Gaussians(torch.ones(4), torch.zeros(4, d).double(), torch.ones(4, d).double())
    experts, counts = [task.init_params(1), task.init_params(2)], torch.tensor([[3, 0, 1, 0], [0, 0, 2, 0]])
    for teacher, classes in (("experts", {0, 2}), ("labels", {0, 1, 2, 3})):
        s = fed.method.settings.model_copy(update={"teacher": teacher})
        with pytest.MonkeyPatch.context() as m:
            m.setattr(statistics, "draw", spy)
            datafree.distill_on_draws(task, statistics.inputs(task), task.init_params(3), experts, counts, of, s, 5, 1)
        assert set(seen) == classes
        seen.clear()


def test_bytes_of_statistics_count_half_of_a_symmetric_matrix() -> None:
    base = {"federation": {"per_round": 1}, "rounds": 1}
    up = {c: toy.simulate({**INPUTS, "covariance": c}, **base).rows[0]["bytes/up"] for c in ("diag", "full")}
    d, classes = 8, 4
    assert up["full"] - up["diag"] == 4 * classes * (d * (d + 1) // 2 - d)


def train_loss(done: Any, model: Any, clients: Any) -> float:
    """Mean over the clients' training rows."""
    rows = np.concatenate([done.fed.federation.train[c] for c in clients])
    x, y = (torch.as_tensor(done.fed.federation.arrays[n][rows]) for n in ("x", "y"))
    return float(torch.nn.functional.cross_entropy(done.fed.task.apply(model, x.double()), y))


@pytest.mark.parametrize("student_lr", [1.0, 5000.0])
def test_what_is_kept_has_the_least_training_loss(student_lr: float) -> None:
    """A student that learnt too fast is not kept; no model that is kept is worse than the average."""
    on = {
        "name": "disue",
        "inputs": "statistics",
        "teacher": "labels",
        "iterations": 5,
        "batch": 8,
        "student_lr": student_lr,
    }
    base = {"executor": "vmap", "dtype": "float64", "rounds": 1}
    always, best = (toy.simulate({**on, "accept": a}, **base) for a in ("always", "best"))
    average = toy.simulate("fedavg", **base).state["model"]
    half = tree.add(tree.scale(average, 0.5), always.state["model"], 0.5)
    ids = best.fed.drawn[0].ids
    losses = {a: train_loss(best, m, ids) for a, m in ((0.0, average), (0.5, half), (1.0, always.state["model"]))}
    assert train_loss(best, best.state["model"], ids) == pytest.approx(min(losses.values()), abs=1e-9)
    assert losses[best.rows[0]["distill/accepted"]] == min(losses.values())
    assert (best.rows[0]["distill/accepted"] == 1.0) == (student_lr == 1.0)


def test_a_client_chooses_among_all_experts_and_the_universal_one() -> None:
    """Held-out clients and clients without a cluster too; never by test rows."""
    done = toy.simulate(
        {"name": "disue", "distill": False, "clusters": 2, "personal": "least_loss"},
        executor="vmap", dtype="float64", score=True,
    )  # fmt: skip
    method, task, federation = done.fed.method, done.fed.task, done.fed.federation
    models = tree.unstack(method.serve(done.state)["experts"])
    assert len(models) >= 3 and tree.same(models[-1], done.state["model"])
    _, rows = done.scores()
    for row in rows:
        best = min(models, key=lambda m: train_loss(done, m, [row["client"]]))
        test = federation.test[row["client"]]
        if len(test):
            x, y = (torch.as_tensor(federation.arrays[n][test]) for n in ("x", "y"))
            want = float(torch.nn.functional.cross_entropy(task.apply(best, x.double()), y))
            assert row["loss"] == pytest.approx(want, abs=1e-9)


# -- clusterer auto, and a generator held to moments ----------------------------------------------------------------------


def balanced(split: Any, group: list[int]) -> dict[str, Any]:
    """Clients with twelve rows of either class, by the sign of the first number, in group 1 the other way round."""
    rng, signs = np.random.default_rng(0), np.repeat([-1, 1], 12)
    xs = [np.concatenate([abs(rng.normal(size=(24, 1))) * signs[:, None], rng.normal(size=(24, 7))], 1) for _ in group]
    split(xs, [(signs > 0).astype(int) ^ g for g in group], group=group)
    return {"federation": {"clients": len(group), "per_round": None, "holdout": {"kind": "none"}}}


def test_auto_finds_opposite_groups_and_says_by_what(split: Any) -> None:
    """From any evidence of updates; every round the same ids."""
    group = [0, 1, 1, 0] * 3
    changes = balanced(split, group)
    done = toy.simulate(disue(clusterer="auto", distill=False), rounds=3, executor="vmap", **changes)
    assert done.state["assignment"].tolist() == group and len(done.state["experts"]) == 2
    assert done.rows[0]["clusters/by_signatures"] == 1 and done.rows[0]["clusters/by_kept"] == 0
    assert done.rows[-1]["clusters/by_kept"] == done.rows[-1]["clusters/by_losses"] == 1
    assert all(0 < r["clusters/gain"] < 1 and r["clusters/structure"] > 0.5 for r in done.rows)


def test_auto_finds_one_cluster_where_clients_are_alike(split: Any) -> None:
    changes = balanced(split, [0] * 12)
    done = toy.simulate(disue(clusterer="auto", distill=False), rounds=3, executor="vmap", **changes)
    assert done.state["assignment"].tolist() == [0] * 12
    assert all(r["clusters/by_signatures"] == 0 for r in done.rows)
    off = toy.simulate(
        disue(clusterer={"kind": "auto", "most": 1}, distill=False), rounds=3, executor="vmap", **changes
    )
    assert off.state["assignment"].tolist() == [0] * 12 and [r["visits"] for r in off.rows] == [12] * 3


def test_trials_are_measured_by_those_who_are_asked(plain: Any) -> None:
    """Mean over the client's rows of the loss of start + weighted updates, by NumPy; what is sent counts."""
    fed = toy.make_fed(toy.config(disue(clusterer="auto", distill=False), **plain.WORK))
    fed.begin(1)
    method, task = fed.method, fed.task
    start = task.init_params(3)
    got = fed.ask(method.train, fed.sample(), shared={"model": start}, keep="delta", fold=mean("delta"))
    rng = np.random.default_rng(0)
    weights, asked = rng.random((3, len(got))), rng.integers(3, size=(len(got), 2))
    before = fed.meter["bytes/down"]
    found = method._trials(got, fed, start)(weights, asked)
    assert fed.meter["bytes/down"] - before == len(got) * (3 * tree.nbytes(start) + 2 * 8)
    models = [plain.vector(tree.add(start, d)) for d in got.linear("delta", torch.as_tensor(weights))]
    for i, c in enumerate(got.ids):
        want = [plain.loss(models[k], *plain.data(fed, c)) for k in asked[i]]
        assert found[i].tolist() == pytest.approx(want, abs=1e-12)


def test_a_generator_held_to_moments_asks_for_sums_and_comes_nearer() -> None:
    """The same draws with and without: what is made has features nearer to the clients'."""
    base = {"executor": "vmap", "rounds": 1}
    on = {"iterations": 80, "student_steps": 0, "generator_lr": 0.02, "batch": 32, "fidelity": 0.0, "adversarial": 0.0}
    free, held = (toy.simulate(disue(**{**on, "diversity": 0.0, "moments": w}), **base) for w in (1e-9, 10.0))
    # pixels between 0 and 1 cannot be blobs, which are of any size: nearer, not near
    assert held.rows[0]["distill/moments"] < 0.85 * free.rows[0]["distill/moments"]
    none = toy.simulate(disue(**on), **base)
    assert "distill/moments" not in none.rows[0]
    assert held.rows[0]["visits"] == 2 * none.rows[0]["visits"]
    assert tree.same(held.state["model"], none.state["model"])  # no student step: the average


OF_CLIENTS = {"inputs": "client_generators", "generator_epochs": 3, "iterations": 2, "batch": 8, "noise": 4}


def test_generators_go_up_once_and_teach_the_whole_model() -> None:
    done = toy.simulate({"name": "disue", **OF_CLIENTS}, rounds=3, **DOUBLE)
    seen = sorted({c for d in done.fed.drawn for c in d.ids})
    assert sorted(int(c) for c in done.state["generators"]) == seen
    asked = [row["visits"] - len(d.ids) for row, d in zip(done.rows, done.fed.drawn, strict=True)]
    assert sum(asked) == len(seen) and asked[0] == len(done.fed.drawn[0].ids)
    one, average = (
        toy.simulate({"name": "disue", **OF_CLIENTS}, rounds=1, **DOUBLE),
        toy.simulate({"name": "disue", **OF_CLIENTS, "iterations": 0}, rounds=1, **DOUBLE),
    )
    assert all(not torch.equal(p, average.state["model"][n]) for n, p in one.state["model"].items())
    assert tree.same(average.state["model"], toy.simulate("fedavg", rounds=1, **DOUBLE).state["model"])
    assert all(tree.same(g, done.state["generators"][c]) for c, g in one.state["generators"].items())


def test_a_clients_generator_comes_near_its_rows(split: Any) -> None:
    """Two kinds of bright and dark pictures: what is drawn of a class has its mean, where the first draws do not."""
    rng = np.random.default_rng(0)
    y = [np.array([0, 1] * 20) for _ in range(2)]
    bright = np.array([[0.9] * 4 + [0.1] * 4, [0.1] * 4 + [0.9] * 4])
    split([bright[labels] + 0.02 * rng.normal(size=(40, 8)) for labels in y], y)
    changes = {"federation": {"clients": 2, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none"}}}
    made = {}
    for epochs in (1, 150):
        spec = disue(**{**OF_CLIENTS, "generator_epochs": epochs, "generator_lr": 2e-3})
        done = toy.simulate(spec, rounds=1, executor="vmap", **changes)
        of = client_generators.generators(done.state["generators"], 4, (8,))
        drawn = torch.stack([of.draw(torch.full((64,), c), torch.Generator().manual_seed(0)).mean(0) for c in (0, 1)])
        made[epochs] = float((drawn - torch.as_tensor(bright)).abs().mean())
    assert made[150] < 0.15 < made[1]


def test_class_experts_are_means_by_rows_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand-worked numbers at the scale of the toy: of class c the mean of all models weighted by n_{i,c}."""
    seen: list[Any] = []
    original = DisUE.distil

    def spy(self: DisUE, state: Any, average: Any, experts: Any, counts: Any, *more: Any) -> Any:
        seen.append((experts, counts))
        return original(self, state, average, experts, counts, *more)

    monkeypatch.setattr(DisUE, "distil", spy)
    done = toy.simulate(disue(experts="class"), rounds=1, **DOUBLE)
    start, got = done.initial["model"], replies(done, done.initial["model"])
    delta, held = got.gather("delta"), done.fed.federation.class_counts
    ((experts, counts),) = seen
    classes = [c for c in range(4) if held[got.ids, c].sum()]
    assert len(experts) == len(classes) and counts.tolist() == np.diag(held[got.ids].sum(0))[classes].tolist()
    for expert, c in zip(experts, classes, strict=True):
        want = start
        for i in got.ids:
            want = tree.add(want, delta[i], held[i, c] / held[got.ids, c].sum())
        close(expert, want)


# -- experts that live for the run, and clients that start nearer to theirs -----------------------------------------------


EVERYONE = {"federation": {"per_round": None}}
ALONE = {"name": "disue", "distill": False}


@needs_fedavg
def test_the_model_for_all_is_fedavg_whatever_experts_live_beside_it() -> None:
    """To the bit; and to rounding where the one expert is the average, which clients start from."""
    done = toy.simulate({**ALONE, "lifetime": "run"}, rounds=3, executor="vmap")
    assert tree.same(done.state["model"], toy.simulate("fedavg", rounds=3, executor="vmap").state["model"])
    nearer = toy.simulate({**ALONE, "own_share": 0.7, "clusters": 1}, rounds=3, **DOUBLE)
    close(nearer.state["model"], toy.simulate("fedavg", rounds=3, **DOUBLE).state["model"])


@needs_oracle
def test_experts_of_planted_groups_are_fedavg_in_each(plain: Any) -> None:
    """Whole batches, all clients in each round; rebuilt ones are not."""
    work = toy.merge(plain.WORK, EVERYONE)
    spec = {**ALONE, "clusterer": "oracle"}
    ours, rebuilt = (toy.simulate({**spec, "lifetime": t}, rounds=3, **work) for t in ("run", "round"))
    theirs = toy.simulate("oracle", rounds=3, **work)
    at = ours.state["assignment"].tolist()
    for k, expert in ours.state["experts"].items():
        of = str(int(theirs.state["assignment"][at.index(int(k))]))
        close(expert, theirs.state["experts"][of])
        assert float(tree.norm(tree.sub(rebuilt.state["experts"][k], expert))) > 1e-3
    asked = [row["visits"] for row in ours.rows]
    assert asked == [12, 24, 24]  # in the first round the experts are new


def test_a_new_expert_is_made_of_the_model_for_all_and_a_known_one_goes_on(plain: Any) -> None:
    """Two clusters of six clients, of which the second has an id that nobody knew."""
    done = toy.simulate({**ALONE, "lifetime": "run"}, rounds=1, **toy.merge(plain.WORK, EVERYONE))
    fed, method = toy.make_fed(done.fed.config), done.fed.method
    fed.begin(2)
    known, fresh = fed.task.init_params(8), [fed.task.init_params(k) for k in (9, 10)]
    clients, labels = list(range(12)), np.arange(12) % 2
    first, second = method.lived({"experts": {"4": known}}, clients, labels, [4, 7], fresh, fed)
    assert tree.same(second, fresh[1])
    start, data = plain.vector(known), [plain.data(fed, c) for c in range(0, 12, 2)]
    moved = [plain.descend(start, x, y) for x, y in data]
    want = np.average(moved, axis=0, weights=[len(y) for _, y in data])
    np.testing.assert_allclose(plain.vector(first), want, atol=1e-12)


def test_clients_start_between_the_model_for_all_and_their_expert(plain: Any) -> None:
    """Round 2 by NumPy: a client that was away in round 1 starts from theta; all updates are relative to theta."""
    spec = {**ALONE, "own_share": 0.25, "clusterer": "oracle"}
    one, two = (toy.simulate(spec, rounds=r, **plain.WORK) for r in (1, 2))
    theta, ids = plain.vector(one.state["model"]), two.fed.drawn[1].ids
    assert set(ids) - set(one.fed.drawn[0].ids)
    ends, n = [], []
    for c in ids:
        k = str(int(one.state["assignment"][c]))
        own = plain.vector(one.state["experts"][k]) if k in one.state["experts"] else theta
        x, y = plain.data(two.fed, c)
        ends.append(plain.descend(theta + 0.25 * (own - theta), x, y))
        n.append(len(y))
    np.testing.assert_allclose(plain.vector(two.state["model"]), np.average(ends, axis=0, weights=n), atol=1e-12)
    group = two.fed.federation.group
    for k, expert in two.state["experts"].items():
        mine = [i for i, c in enumerate(ids) if int(two.state["assignment"][c]) == int(k)]
        if mine:
            assert len({int(group[ids[i]]) for i in mine}) == 1
            want = np.average([ends[i] for i in mine], axis=0, weights=[n[i] for i in mine])
            np.testing.assert_allclose(plain.vector(expert), want, atol=1e-12)


def test_newcomers_choose_and_members_are_served_their_expert(plain: Any) -> None:
    """By training loss, among all experts and theta; who was never drawn and the two held out are newcomers."""
    done = toy.simulate({**ALONE, "personal": "newcomers", "lifetime": "run"}, rounds=2, **plain.WORK)
    member, experts = done.fed.method.clusters(done.state), done.state["experts"]
    vectors = [plain.vector(experts[k]) for k in sorted(experts, key=int)] + [plain.vector(done.state["model"])]
    new = 0
    for row in done.scores()[1]:
        c = row["client"]
        x, y = plain.data(done.fed, c)
        best = min(vectors, key=lambda p: plain.loss(p, x, y))
        served = plain.vector(experts[str(member[c])]) if c in member else best
        new += c not in member
        assert row["loss"] == pytest.approx(plain.loss(served, *plain.data(done.fed, c, "test")), abs=1e-12)
    assert new >= 2
