"""What every kind keeps to, and splits whose bits must not change."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from rayfed import partition
from rayfed.data import Dataset, Part
from rayfed.errors import ConfigError
from rayfed.partition import Federation
from rayfed.partition.longtail import tail
from tests.unit.partition.blobs import BLOBS, DOMAINS, EVEN, HOLD, N, blobs, conf, with_domains

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


@pytest.mark.parametrize("planted", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_repeatable_doubles_no_row_and_keeps_the_least(kind: str, planted: str) -> None:
    if (kind, planted) == ("mixed", "domain"):
        pytest.skip("refused, see `test_mixing_domains_contradicts_groups_by_domain`")
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
