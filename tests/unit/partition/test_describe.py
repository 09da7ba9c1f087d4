"""`rayfed partition`: its numbers against independent computations, what it prints and writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from rayfed import cli, data, partition
from rayfed.config.schema import Config
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from rayfed.partition import describe as d
from rayfed.partition import embedding
from tests.unit.partition.small import ROOT, one, raw, size


def test_label_distance_is_the_mean_over_pairs_of_scipys() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (7, 5)) + np.eye(7, 5, dtype=int)
    pairs = [jensenshannon(a, b, base=2) for a, b in combinations(counts, 2)]
    assert d.label_distance(counts) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert d.label_distance(np.eye(3, 4, dtype=int) * 5) == pytest.approx(1)
    assert d.label_distance(np.array([[1, 2, 4], [2, 4, 8], [3, 6, 12]])) == pytest.approx(0, abs=1e-7)
    assert d.label_distance(counts[:1]) is None


def test_embedding_distance_by_hand() -> None:
    """Means (0, 0), (3, 4), (0, 4): distances 5, 4 and 3."""
    e = np.array([[-1.0, 0], [1, 0], [3, 4], [3, 4], [0, 4]])
    spread = np.sqrt(np.mean([np.sum((r - e.mean(0)) ** 2) for r in e]))
    assert d.embedding_distance(e, np.array([7, 7, 2, 2, 5])) == pytest.approx(4 / spread)
    assert d.embedding_distance(e, np.zeros(5, int)) is None
    assert d.embedding_distance(np.ones((4, 3)), np.arange(4)) == 0


@pytest.mark.parametrize("sizes", [[5, 5, 5], [1, 2, 3, 10], [0, 0, 7]])
def test_gini_is_half_the_relative_mean_difference(sizes: list[int]) -> None:
    x = np.array(sizes, float)
    assert d.gini(x) == pytest.approx(np.abs(x[:, None] - x).mean() / (2 * x.mean()))


def test_counts_are_those_of_the_split() -> None:
    described = one(
        holdout={"kind": "clients", "fraction": 0.2},
        groups={"kind": "classes", "count": 2},
        split={"val": 0.1, "test": 0.2},
    )
    f, n = described.federation, described.numbers
    assert f.train.rows.tolist() == partition.build(described.config).train.rows.tolist()
    per_client = [len(f.train[k]) for k in range(9)]
    assert n["sizes"] == {
        "min": min(per_client), "median": float(np.median(per_client)), "max": max(per_client), "gini": d.gini(np.array(per_client)),
    }  # fmt: skip
    assert (n["clients"], n["unseen"], n["classes"], n["compared"]) == (9, 2, 4, 9)
    assert n["rows"]["train"] == sum(per_client) and n["rows"]["pool"] == 40
    assert n["rows"]["train"] + n["rows"]["val"] + n["rows"]["test"] + n["rows"]["nobody"] == n["rows"]["data"] == 300
    held = [len(set(f.arrays["y"][f.train[k]])) for k in range(9)]
    assert n["classes_per_client"] == {"min": min(held), "mean": pytest.approx(np.mean(held)), "max": max(held)}
    assert sorted(n["group_sizes"]) == sorted(np.bincount(f.group).tolist()) and sum(n["group_sizes"]) == 9


def test_skew_shows_in_the_distances_and_chance_does_not() -> None:
    def mean(what: str, **p: Any) -> float:
        return float(np.mean([d.describe(load_request(raw(partition=p)), s)[0].numbers[what] for s in range(8)]))

    for what in ("label_distance", "embedding_distance"):
        skewed, even = ({"kind": "shards", "per_client": 1}, {"kind": "iid"})
        by_chance = mean(f"{what}_at_random", **skewed)
        assert mean(what, **skewed) > 2 * by_chance
        assert mean(what, **even) == pytest.approx(by_chance, rel=0.15)


def test_rotations_are_seen_by_the_embedding_and_not_by_labels() -> None:
    base = {**raw(partition={"kind": "iid"}), "task": {"data": "digits", "model": "linear"}}
    plain, turned = (
        d.describe(load_request({**base, "federation": {**base["federation"], "groups": g}}))[0].numbers
        for g in ({"kind": "none"}, {"kind": "rotation", "count": 3})
    )
    assert turned["label_distance"] == pytest.approx(plain["label_distance"], rel=0.2)
    assert turned["embedding_distance"] > 1.5 * plain["embedding_distance"]


def test_the_probes_rows_are_left_out_of_everything() -> None:
    """A domain column and clusters number the rows that are left."""
    base = {
        **raw(partition={"kind": "domain"}, probe=237),
        "task": {"data": f"{ROOT}/docs/pictures/make.py:scanners", "model": "linear"},
    }
    (described,) = d.describe(load_request(base))
    built = partition.build(described.config)
    assert described.federation.train.rows.tolist() == built.train.rows.tolist()
    assert np.array_equal(described.federation.class_counts, built.class_counts) and len(built.probe) == 237
    assert ((described.views[0].counts > 0).sum(1) == 1).all()
    rows = described.numbers["rows"]
    assert (rows["data"], rows["probe"], rows["nobody"]) == (
        1200,
        237,
        0,
    ) and "public probe set 237" in described.text()


def test_many_clients_are_compared_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d, "MOST_CLIENTS", 30)
    described = one(clients=100)
    assert described.numbers["compared"] == 30 and "pairs of 30 clients drawn at random" in described.text()
    monkeypatch.undo()
    assert described.numbers["label_distance"] == pytest.approx(one(clients=100).numbers["label_distance"], abs=0.08)


def test_clusters_and_domains_are_counted_as_well_as_classes() -> None:
    p = {"kind": "embedding", "alpha": 1, "clusters": 4, "fallback": "columns"}
    described = one(partition=p)
    code = embedding.clusters(
        described.config.federation.partition, data.load(described.config.task.data, 2), partition.draws(2)
    )
    by_hand = [np.bincount(code[described.federation.train[k]], minlength=4).tolist() for k in range(9)]
    assert [v.by for v in described.views] == ["cluster", "class"] and described.views[0].counts.tolist() == by_hand
    scanned = {
        **raw(partition={"kind": "domain"}),
        "task": {"data": f"{ROOT}/docs/pictures/make.py:scanners", "model": "linear"},
    }
    (described,) = d.describe(load_request(scanned))
    assert (described.views[0].by, described.views[0].names) == ("domain", ("faint", "inverted", "plain"))
    assert ((described.views[0].counts > 0).sum(1) == 1).all() and [v.by for v in described.views][1:] == ["class"]
    assert described.views[0].counts.sum() == len(described.federation.train.rows) and described.text().startswith(
        "digits of three scanners, domain"
    )


STUDY = {
    **{k: v for k, v in raw().items() if k != "seed"},
    "seeds": [5, 6],
    "arms": {
        "a": {}, "b": {"method": "fedprox", "federation": {"per_round": 4}}, "c": {"federation": {"partition": {"alpha": 50}}},
    },
}  # fmt: skip


def test_arms_that_share_a_split_are_described_once() -> None:
    found = d.describe(load_request(STUDY))
    assert [f.arms for f in found] == [("a", "b"), ("c",)]
    assert [f.config.seed for f in found] == [5, 5] and [f.config.seed for f in d.describe(load_request(STUDY), 8)] == [
        8,
        8,
    ]
    assert found[0].numbers["label_distance"] > found[1].numbers["label_distance"] + 0.2
    alone = Config.from_dict({**raw(), "seed": 5})
    assert found[0].to_dict() | {"arms": []} == d.describe(alone)[0].to_dict()


def test_an_arm_that_cannot_be_split_is_named() -> None:
    arms = {**STUDY["arms"], "c": {"federation": {"partition": "natural"}}}
    with pytest.raises(ConfigError) as e:
        d.describe(load_request({**STUDY, "arms": arms}))
    assert [p.partition(": federation")[0] for p in e.value.problems] == ["arms.c"]


def call(
    args: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["rayfed", "partition", *args])
    with pytest.raises(SystemExit) as e:
        cli.main()
    out = capsys.readouterr()
    return int(e.value.code or 0), out.out, out.err


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(json.dumps(STUDY))
    return "study.yaml"


def test_it_prints_numbers_and_draws(file: str, monkeypatch: Any, capsys: Any) -> None:
    code, out, _ = call([file], monkeypatch, capsys)
    assert code == 0 and out.endswith("picture: small-partition.png\n")
    blocks = out.split("\n\n")
    assert blocks[0].startswith("a, b: synthetic:blobs, dirichlet (alpha 0.4, over clients), seed 5\n")
    assert blocks[1].startswith("c: synthetic:blobs, dirichlet (alpha 50, over clients), seed 5\n")
    found = d.describe(load_request(STUDY))[0].numbers
    assert re.search(r"label distance +([\d.]+) \(([\d.]+) with", blocks[0]).groups() == (  # type: ignore[union-attr]
        f"{found['label_distance']:.3f}", f"{found['label_distance_at_random']:.3f}",
    )  # fmt: skip
    two = size(Path("small-partition.png").read_bytes())
    Path("run.yaml").write_text(json.dumps(raw()))
    assert call(["run.yaml", "--out", "one.png", "--seed", "7"], monkeypatch, capsys)[1].endswith("picture: one.png\n")
    one = size(Path("one.png").read_bytes())
    assert one[0] == two[0] and one[1] < 0.7 * two[1]


def test_json_has_the_same_numbers_and_draws_only_on_request(file: str, monkeypatch: Any, capsys: Any) -> None:
    code, out, _ = call([file, "--json", "--seed", "6"], monkeypatch, capsys)
    printed = json.loads(out)
    assert code == 0 and printed["picture"] is None and sorted(Path().iterdir()) == [Path("study.yaml")]
    assert printed["splits"] == json.loads(json.dumps([f.to_dict() for f in d.describe(load_request(STUDY), 6)]))
    assert printed["splits"][0]["partition"]["kind"] == "dirichlet" and printed["splits"][0]["seed"] == 6
    _, out, _ = call([file, "--json", "--out", "p.png"], monkeypatch, capsys)
    assert json.loads(out)["picture"] == "p.png" and size(Path("p.png").read_bytes())[0] > 500


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--out", "p.jpg"], "--out: 'p.jpg' found, allowed: a file that ends in .pdf, .svg, .png"),
        (["--out", "nowhere/p.png"], "--out: nowhere/p.png cannot be written, nowhere is not a folder"),
        (["--set", "federation.clients=500"], "arms.c: federation.clients: 500 clients cannot get 2 examples each"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_leaves_nothing(
    args: list[str], says: str, file: str, monkeypatch: Any, capsys: Any
) -> None:
    code, _, err = call([file, *args], monkeypatch, capsys)
    assert code == 2 and says in err and "Traceback" not in err
    assert sorted(Path().iterdir()) == [Path("study.yaml")]


def test_neither_torch_nor_ray_is_loaded() -> None:
    code = (
        "import sys, rayfed.cli; from rayfed.partition.describe import describe; from rayfed.launch.preflight import load_request;"
        "from rayfed.report.split_pictures import png; png(describe(load_request('quickstart')));"
        "print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
