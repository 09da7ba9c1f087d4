"""Quantity, embedding, domain, long-tail partitions, Dirichlet over labels and groups by domain; bits that must not change."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from rayfed import data, partition
from rayfed.config.schema import Config, Named
from rayfed.data import Dataset, Part
from rayfed.errors import ConfigError
from rayfed.partition import Federation, embed, groups
from rayfed.partition.dirichlet import label_counts
from rayfed.partition.embedding import allocate, clusters, columns
from rayfed.partition.longtail import tail

HOLD = {"kind": "clients", "fraction": 0.2}


def conf(seed: int = 0, /, **f: Any) -> Config:
    task = {"data": "digits", "model": "linear"}  # `build` is given its data, so the name does not matter
    f = {"clients": 10, "split": {"test": 0}, **f}
    return Config.from_dict({"seed": seed, "task": task, "method": "fedavg", "federation": f})


def blobs(examples: int = 400, classes: int = 4, **options: Any) -> Dataset:
    spec = {"name": "synthetic:blobs", "examples": examples, "classes": classes, "test": 80, "features": 6, **options}
    return data.load(Named.model_validate(spec), 0)


def with_domains(d: Dataset, names: Any, test_names: Any) -> Dataset:
    a, b = np.array(names), np.array(test_names)
    return replace(d, train=replace(d.train, domain=a), test=replace(d.test, domain=b))


BLOBS = blobs()
N = len(BLOBS.train.y)
RNG = np.random.default_rng(3)
FLAT = np.zeros((480, 1), np.float32)
EVEN = Dataset(
    "even", Part(FLAT[:400], np.arange(400) % 4), Part(FLAT[400:], np.arange(80) % 4), 4, tuple("0123"), "tabular"
)
DOMAINS = with_domains(
    BLOBS, RNG.choice(["cam", "lab", "web", ""], N, p=[0.5, 0.3, 0.15, 0.05]), RNG.choice(["cam", "lab", "new"], 80)
)
KINDS: dict[str, dict[str, Any]] = {
    "quantity": {"kind": "quantity", "alpha": 0.5, "min_examples": 3},
    "over_labels": {"kind": "dirichlet", "alpha": 0.5, "over": "labels"},
    "domain": {"kind": "domain", "min_examples": 3},
    "mixed": {"kind": "domain", "mixed": 0.4, "min_examples": 3},
    "longtail": {"kind": "longtail", "alpha": 0.5, "imbalance": 10, "min_examples": 3},
    "task": {"kind": "embedding", "alpha": 5, "clusters": 5, "min_examples": 3},
    "pca": {"kind": "embedding", "alpha": 5, "clusters": 5, "embedding": "pca", "min_examples": 3},
    "labels": {"kind": "embedding", "alpha": 2, "embedding": "labels", "min_examples": 3},
}
GROUPS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "label_permutation": {"kind": "label_permutation", "count": 2},
    "domain": {"kind": "domain"},
}


def bits(f: Federation) -> str:
    """A digest of who holds what."""
    h, flat = hashlib.sha256(), f.numpy()
    for k in (
        "train/offsets",
        "train/rows",
        "val/rows",
        "test/rows",
        "pool",
        "group",
        "class_counts",
        "arrays/x",
        "arrays/y",
    ):
        a = flat["pooled_test" if k == "pool" else k]  # the digests below were taken under that name
        h.update(f"{k} {a.dtype.str} {a.shape}".encode() + a.tobytes())
    return h.hexdigest()[:16]


# -- what holds for every kind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_repeatable_doubles_no_row_and_keeps_the_least(kind: str, planted: str) -> None:
    if (kind, planted) == ("mixed", "domain"):
        pytest.skip("refused, see below")
    kinds = (
        KINDS[kind]
        if planted != "domain" or "embedding" not in KINDS[kind].values()
        else {**KINDS[kind], "clusters": 2}
    )
    c = conf(5, partition=kinds, groups=GROUPS[planted], holdout=HOLD, split={"val": 0.1, "test": 0.25})
    f = partition.build(c, DOMAINS)
    assert bits(partition.build(c, with_domains(blobs(), DOMAINS.train.domain, DOMAINS.test.domain))) == bits(f)
    other = partition.build(conf(6, **{**c.federation.model_dump(), "split": {"val": 0.1, "test": 0.25}}), DOMAINS)
    assert other.train.rows.tolist() != f.train.rows.tolist()
    rows = np.concatenate([i.rows for i in (f.train, f.val, f.test)])
    owner = np.concatenate([i.owners() for i in (f.train, f.val, f.test)])
    assert len(np.unique(rows)) == len(rows) and rows.min() >= 0 and rows.max() < N
    assert np.bincount(owner, minlength=10).min() >= KINDS[kind].get("min_examples", 2)
    assert (f.clients, f.population) == (10, 8)
    left = np.setdiff1d(np.arange(N), rows)
    nameless = np.flatnonzero(DOMAINS.train.domain == "")
    by_domain = planted == "domain" or kind in ("domain", "mixed")
    if kind == "longtail":
        of = np.flatnonzero(DOMAINS.train.domain != "") if by_domain else np.arange(N)
        kept = tail(BLOBS.train.y, 4, 10, partition.draws(5)("tail"))
        assert np.array_equal(np.sort(rows), np.intersect1d(kept, of))
    elif kind in ("task", "pca", "labels"):  # rounding and the sizes of least squares leave some
        assert set(left) >= (set(nameless) if by_domain else set())
        assert len(left) < 0.3 * N
    else:
        assert left.tolist() == (nameless.tolist() if by_domain else [])


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ({"kind": "iid"}, "5368eded6a531e79"),
        ({"kind": "dirichlet", "alpha": 0.3}, "ba0114b6b8c64b74"),
        ({"kind": "shards", "per_client": 2}, "4deac359d51464d8"),
        ({"kind": "natural"}, "3aa7833a356dcec6"),
        ({"kind": "quantity", "alpha": 0.5}, "81bb153b4003d25e"),
        ({"kind": "dirichlet", "alpha": 0.5, "over": "labels"}, "ab39de65ccd5c5ba"),
        ({"kind": "domain"}, "990d944aba9dcb33"),
        ({"kind": "longtail", "alpha": 0.5}, "c99184f52e28a6a1"),
        ({"kind": "embedding", "alpha": 2, "embedding": "labels"}, "0297890982d9c9f0"),
    ],
    ids=lambda v: "" if isinstance(v, str) else f"{v['kind']}{v.get('over', '')}",
)
def test_splits_have_the_bits_they_had(kind: dict[str, Any], digest: str) -> None:
    """A changed digest changes every published split: change these only with a line in the changelog."""
    n = np.arange(300)
    a = Part(n[:, None].astype(np.float32), n % 7, np.char.mod("%d", n % 15), np.char.mod("%d", n % 3))
    b = Part(n[:40, None].astype(np.float32), n[:40] % 7, np.char.mod("%d", n[:40] % 15), np.char.mod("%d", n[:40] % 3))
    d = Dataset("counted", a, b, 7, tuple("0123456"), "tabular")
    f = partition.build(conf(1, partition=kind, holdout=HOLD, split={"val": 0.1, "test": 0.2}), d)
    assert bits(f) == digest


# -- quantity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.3, 3.0])
def test_sizes_have_the_spread_of_dirichlet(alpha: float) -> None:
    """Var p = (1/n)(1 - 1/n) / (n alpha + 1), over 40 seeds of 20 clients; labels do not depend on the client."""
    n, y = 20, np.arange(4000) % 2
    d = Dataset(
        "t", Part(y[:, None].astype(np.float32), y), Part(np.zeros((0, 1), np.float32), y[:0]), 2, ("0", "1"), "tabular"
    )
    made = [
        partition.build(conf(s, clients=n, partition={"kind": "quantity", "alpha": alpha, "min_examples": 1}), d)
        for s in range(40)
    ]
    share = np.array([f.train.sizes() for f in made]) / 4000
    assert share.sum(1) == pytest.approx(np.ones(40))
    assert share.var() == pytest.approx((1 / n) * (1 - 1 / n) / (n * alpha + 1), rel=0.15)
    large = np.concatenate([f.class_counts[f.train.sizes() > 100] for f in made])
    z = (large[:, 0] - large.sum(1) / 2) / np.sqrt(large.sum(1) / 4)
    assert abs(z.mean()) < 0.25 and z.std() == pytest.approx(1, abs=0.2)


# -- dirichlet over labels -----------------------------------------------------------------------------------------------


def test_over_labels_sizes_are_equal_and_labels_have_the_spread_of_dirichlet() -> None:
    """With r even over C classes, Var q_c = r(1 - r) / (alpha + 1); drawing m rows from q adds r(1 - r) alpha / (alpha + 1) / m."""
    y = np.arange(20_000) % 4
    d = Dataset(
        "t",
        Part(y[:, None].astype(np.float32), y),
        Part(np.zeros((0, 1), np.float32), y[:0]),
        4,
        tuple("0123"),
        "tabular",
    )
    for alpha in (1.0, 8.0):
        p = {"kind": "dirichlet", "alpha": alpha, "over": "labels"}
        f = partition.build(conf(2, clients=200, partition=p), d)
        assert f.train.sizes().tolist() == [100] * 200
        assert f.class_counts.sum(0).tolist() == [5000] * 4
        found = (f.class_counts / 100).var()
        assert found == pytest.approx(0.25 * 0.75 * (1 + alpha / 100) / (alpha + 1), rel=0.15)


def test_label_counts_have_both_margins_when_all_want_one_class() -> None:
    q = np.tile([0.98, 0.02, 0.0], (6, 1))
    got = label_counts(q, np.full(6, 10), np.array([20, 20, 20]), np.random.default_rng(0))
    assert got.sum(1).tolist() == [10] * 6 and got.sum(0).tolist() == [20] * 3 and (got >= 0).all()


# -- domain --------------------------------------------------------------------------------------------------------------


def domain_counts(f: Federation, d: Dataset) -> np.ndarray:
    """(N, D) rows of each client, by a loop."""
    names = sorted(set(d.train.domain) - {""})
    return np.array([[(d.train.domain[f.train[k]] == n).sum() for n in names] for k in range(f.clients)])


def test_clients_hold_one_domain_and_their_number_follows_the_rows() -> None:
    f = partition.build(conf(clients=13, partition={"kind": "domain"}, holdout=HOLD), DOMAINS)
    counts = domain_counts(f, DOMAINS)
    assert ((counts > 0).sum(1) == 1).all()
    clients, rows = (counts > 0).sum(0), counts.sum(0)
    assert np.abs(clients - 13 * rows / rows.sum()).max() < 1
    assert set(counts[:10].argmax(1)) == {0, 1, 2}  # every domain among those that train
    for k in range(3):
        assert np.ptp(counts[counts[:, k] > 0, k]) <= 1


def test_a_mixed_share_of_each_domain_goes_to_everybody() -> None:
    f = partition.build(conf(partition={"kind": "domain", "mixed": 0.5}), DOMAINS)
    counts = domain_counts(f, DOMAINS)
    rows = counts.sum(0)
    foreign = np.sort(counts, 1)[:, :-1].sum()
    everyone = np.round(0.5 * rows) / 10
    own = np.array([(counts.argmax(1) == k).sum() for k in range(3)])
    assert foreign == pytest.approx((everyone * (10 - own)).sum(), abs=10)
    assert np.abs(counts - everyone).min(1).max() <= 1


def test_groups_by_domain_are_the_domains() -> None:
    for kind in ({"kind": "iid"}, {"kind": "dirichlet", "alpha": 0.3}, {"kind": "quantity", "alpha": 1}):
        f = partition.build(conf(3, partition=kind, groups={"kind": "domain"}, holdout=HOLD), DOMAINS)
        counts = domain_counts(f, DOMAINS)
        assert np.array_equal(counts.argmax(1), f.group) and ((counts > 0).sum(1) == 1).all()
        assert set(f.group[:8]) == {0, 1, 2}
        asked = DOMAINS.test.domain[f.pooled_test - N]
        assert set(asked) == {"cam", "lab"} and len(f.pooled_test) == np.isin(DOMAINS.test.domain, ["cam", "lab"]).sum()
        assert np.array_equal(f.arrays["x"][:N], DOMAINS.train.x)  # nothing is transformed


def test_natural_clients_are_grouped_by_their_main_domain() -> None:
    d = replace(DOMAINS, train=replace(DOMAINS.train, client=np.char.mod("c%d", np.arange(N) // 30)))
    f = partition.build(conf(clients=8, partition={"kind": "natural"}, groups={"kind": "domain"}), d)
    for k, name in enumerate(f.names):
        mine = np.flatnonzero(d.train.client == name)
        main = max(["cam", "lab", "web"], key=lambda n: (d.train.domain[mine] == n).sum())
        assert ["cam", "lab", "web"][f.group[k]] == main
        assert f.train[k].tolist() == mine[d.train.domain[mine] == main].tolist()


@pytest.mark.parametrize(("rows", "n"), [([50, 30, 20], 10), ([97, 2, 1], 7), ([5, 5], 9), ([1000, 10, 1], 40)])
def test_spread_gives_each_domain_one_and_every_beginning_in_proportion(rows: list[int], n: int) -> None:
    d = groups.spread(np.array(rows), n)
    assert len(d) == n and set(d[: len(rows)]) == set(range(len(rows)))
    seats = [1] * len(rows)  # Huntington and Hill, by hand
    for _ in range(n - len(rows)):
        seats[max(range(len(rows)), key=lambda k: rows[k] / (seats[k] * (seats[k] + 1)) ** 0.5)] += 1
    assert np.bincount(d).tolist() == seats


# -- long tail -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("imbalance", "by_hand"), [(100, [100, 22, 5, 1]), (10, [100, 46, 22, 10]), (1, [100] * 4)])
def test_class_counts_follow_the_imbalance(imbalance: float, by_hand: list[int]) -> None:
    p = {"kind": "longtail", "alpha": 100, "imbalance": imbalance}
    f = partition.build(conf(clients=5, partition=p), EVEN)
    assert f.class_counts.sum(0).tolist() == by_hand
    assert f.pooled_test.tolist() == list(range(N, N + 80))
    f = partition.build(conf(clients=5, partition={**p, "test": "tail"}), EVEN)
    asked = np.bincount(EVEN.test.y[f.pooled_test - N])
    assert asked.tolist() == [max(1, round(20 * imbalance ** (-c / 3))) for c in range(4)]


def test_the_tail_is_dealt_as_dirichlet_deals() -> None:
    skew = [
        (lambda n: (n / n.sum(0)).var())(
            partition.build(conf(partition={"kind": "longtail", "alpha": a, "imbalance": 2}), EVEN).class_counts
        )
        for a in (0.1, 100)
    ]
    assert skew[0] > 20 * skew[1]


# -- embedding -------------------------------------------------------------------------------------------------------------


def test_the_embedding_of_the_task_separates_what_the_task_separates() -> None:
    """x has a strong direction that says nothing about y: PCA follows it, the trained hidden layer does not."""
    rng = np.random.default_rng(0)
    y, strong = rng.integers(0, 2, 600), rng.choice([-1.0, 1.0], 600)
    x = np.stack([20 * strong, 2.0 * (2 * y - 1), rng.normal(size=600), rng.normal(size=600)], 1).astype(np.float32)

    def agree(a: np.ndarray, b: np.ndarray) -> float:
        return max(np.mean(a == b), np.mean(a != b))

    by_pca = embed.clusters(embed.pca(x), 2, np.random.default_rng(1))
    assert agree(by_pca, strong > 0) > 0.99 and agree(by_pca, y) < 0.6
    e = embed.task(x, y, "tabular", np.random.default_rng(1))(x)
    assert e.shape == (600, embed.HIDDEN)
    live = e.std(0) > 0
    assert e[:, live].std(0) == pytest.approx(np.ones(live.sum())) and e.mean(0) == pytest.approx(
        np.zeros(64), abs=1e-9
    )
    for space, by_label in ((e, True), (embed.pca(x), False)):
        label, other = (np.linalg.norm(space[a].mean(0) - space[~a].mean(0)) for a in (y > 0, strong > 0))
        assert label > 1.1 * other if by_label else label < 0.3 * other


def test_embedding_by_chunks_equals_embedding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = embed.task(BLOBS.train.x, BLOBS.train.y, "tabular", np.random.default_rng(0))
    at_once = fitted(BLOBS.train.x)
    monkeypatch.setattr(embed, "FIT", 37)
    assert fitted(BLOBS.train.x) == pytest.approx(at_once, abs=1e-12)


class Known:
    """A generator whose Dirichlet draws are known, and the others real."""

    def __init__(self, *q: list[list[float]]):
        self.q, self.asked, self.rng = list(q), [], np.random.default_rng(0)

    def dirichlet(self, prior: np.ndarray, size: Any) -> np.ndarray:
        self.asked.append(prior.tolist())
        many = size[0] if isinstance(size, tuple) else None
        return np.array(self.q[0]) if many is None else np.array([self.q[i % len(self.q)] for i in range(many)])

    def permutation(self, x: Any) -> np.ndarray:
        return self.rng.permutation(x)

    def random(self, n: int) -> np.ndarray:
        return self.rng.random(n)


def test_rows_of_a_cluster_go_where_q_says() -> None:
    """Q^T n = s for n = (40, 40, 20) has one solution; a draw whose solution is negative is not taken."""
    q = [[0.5, 0.5, 0.0], [0.25, 0.0, 0.75], [0.0, 0.5, 0.5]]
    s = np.array(q).T @ [40, 40, 20]
    negative = [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.0, 1.0]]
    rng = Known(negative, q)
    got = allocate(s.astype(int), 3, 2.0, 5, 100, rng)  # type: ignore[arg-type]
    assert got is not None
    assert rng.asked == [(2.0 * s / 100).tolist()]
    assert np.abs(got - np.array(q) * np.array([[40], [40], [20]])).max() <= 1 and (got.sum(0) <= s).all()
    assert allocate(s.astype(int), 3, 2.0, 5, 100, Known(negative)) is None  # type: ignore[arg-type]
    assert allocate(s.astype(int), 3, 2.0, 21, 100, Known(q)) is None  # type: ignore[arg-type]


def test_columns_leave_no_row_and_share_clusters_in_proportion() -> None:
    q = [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]
    code = np.repeat([0, 1, 2], [30, 10, 20])
    client = columns(code, np.array([30, 10, 20]), 2, 1.0, 1, Known(q))  # type: ignore[arg-type]
    assert [np.bincount(client[code == c], minlength=2).tolist() for c in range(3)] == [[15, 15], [5, 5], [10, 10]]


def test_clients_follow_clusters_not_labels() -> None:
    """Each class has two far-apart modes: clusters are modes, and small alpha makes clients differ in them."""
    rng = np.random.default_rng(0)
    mode = np.arange(1200) % 4
    x = (np.eye(4)[mode] * 10 + rng.normal(size=(1200, 4))).astype(np.float32)
    d = Dataset("modes", Part(x, mode % 2), Part(x[:8], mode[:8] % 2), 2, ("0", "1"), "tabular")
    p = {"kind": "embedding", "embedding": "pca", "clusters": 4, "min_examples": 20}
    cluster = clusters(conf(partition={**p, "alpha": 1}).federation.partition, d, partition.draws(0))
    assert len(set(zip(mode.tolist(), cluster.tolist()))) == 4

    def distance(alpha: float) -> float:
        f = partition.build(conf(partition={**p, "alpha": alpha}), d)
        means = np.array([x[f.train[k]].mean(0) for k in range(10)])
        return float(np.mean([np.linalg.norm(a - b) for i, a in enumerate(means) for b in means[:i]]))

    skewed, even = distance(0.3), distance(1e4)
    assert skewed > 6 and even < 1
    f = partition.build(conf(partition={**p, "alpha": 1e5}), d)
    share = np.array([np.bincount(cluster[f.train[k]], minlength=4) for k in range(10)]) / f.train.sizes()[:, None]
    assert np.abs(share - 0.25).max() < 0.03  # alpha to infinity: the global ratios


# -- held-out clients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["quantity", "over_labels", "longtail", "labels"])
def test_held_out_clients_are_like_the_others(kind: str) -> None:
    """Sizes and labels of the two held-out clients over many seeds: means within five standard errors of the others'."""
    sizes, skew = [], []
    for s in range(60):
        f = partition.build(conf(s, partition=KINDS[kind], holdout=HOLD), BLOBS)
        p = f.class_counts / f.class_counts.sum(1, keepdims=True)
        sizes.append(f.train.sizes())
        skew.append([float(jensenshannon(q, np.full(4, 0.25), base=2)) for q in p])
    for a in (np.array(sizes, float), np.array(skew)):
        gap = a[:, 8:].mean(1) - a[:, :8].mean(1)
        assert abs(gap.mean()) < 5 * gap.std() / np.sqrt(60) + 1e-9


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "f", "says"),
    [
        (BLOBS, {"partition": {"kind": "domain"}}, "federation.partition.kind: domain found, but synthetic:blobs has no domain column"),
        (BLOBS, {"groups": {"kind": "domain"}}, "federation.groups.kind: domain found, but synthetic:blobs has no domain column"),
        (DOMAINS, {"clients": 2, "partition": {"kind": "domain"}}, "2 clients that take part found for 3 domains of synthetic:blobs"),
        (DOMAINS, {"clients": 2, "groups": {"kind": "domain"}}, "federation.clients: 2 clients that take part found for 3 domains"),
        (
            DOMAINS, {"clients": 30, "partition": {"kind": "domain", "min_examples": 12}},
            "federation.partition.min_examples: domain 'web' has 59 rows for 5 clients, which leaves one with 11",
        ),
        (
            BLOBS, {"clients": 3, "partition": {"kind": "embedding", "alpha": 0.1, "min_examples": 120, "tries": 50}},
            "none of 50 draws gave 3 clients sizes of at least 120 examples that fit the 10 clusters; allowed: `fallback: columns`",
        ),
        (BLOBS, {"partition": {"kind": "embedding", "alpha": 1, "clusters": 401}}, "clusters: 401 found, allowed: at most the 400"),
        (
            replace(BLOBS, train=replace(BLOBS.train, y=np.zeros(N, np.int64))), {"partition": {"kind": "embedding", "alpha": 1}},
            "federation.partition.embedding: task needs rows of at least two classes; allowed: pca",
        ),
        (EVEN, {"clients": 80, "partition": {"kind": "longtail", "alpha": 1}}, "2 examples each from 128 rows; allowed: at most 64"),
        (BLOBS, {"clients": 201, "partition": {"kind": "quantity", "alpha": 1}}, "at most 200, or a smaller partition.min_examples"),
    ],
)  # fmt: skip
def test_what_the_data_does_not_allow_is_a_sentence(d: Dataset, f: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as e:
        partition.build(conf(**f), d)
    assert says in str(e.value)


def test_mixing_domains_contradicts_groups_by_domain() -> None:
    with pytest.raises(
        ValueError, match=r"partition.mixed: 0.2 found, groups of kind domain keep clients in their domain"
    ):
        conf(partition={"kind": "domain", "mixed": 0.2}, groups={"kind": "domain"})
    with pytest.raises(ValueError, match="count: 3 found, under domain the data decides"):
        conf(groups={"kind": "domain", "count": 3})


def test_columns_are_the_way_out_where_no_draw_fits() -> None:
    p = {"kind": "embedding", "alpha": 0.1, "min_examples": 120, "tries": 5, "fallback": "columns"}
    f = partition.build(conf(clients=3, partition=p), BLOBS)
    assert len(f.train.rows) == N and f.train.sizes().min() >= 120
