"""Ranking: who is ranked among whom, by hand; leave-one-out; chance, constant and perfect scorers."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayfed import data
from rayfed.config.schema import Named
from rayfed.data.interactions import leave_one_out
from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from rayfed.launch.federations import Federations
from rayfed.task.ranking import Ranking
from tests import toy
from tests.configs import good

TASTES = {"name": "synthetic:tastes", "users": 40, "items": 150, "each": 12}
CHANGES: dict[str, Any] = {
    "task": {"data": TASTES, "model": {"name": "factors", "dim": 4}},
    "federation": {
        "clients": 40, "per_round": 10, "partition": {"kind": "natural"}, "groups": {"kind": "none"}, "holdout": {"kind": "none"},
    },
}  # fmt: skip


def resident(**kind: Any) -> Resident:
    c = toy.config(dtype="float64", **{**CHANGES, "task": {**CHANGES["task"], "kind": {"name": "ranking", **kind}}})
    return Resident(c, toy.federation(c), None, "cpu")


def scored_by(res: Resident) -> Any:
    f = toy.federation(res.config)
    return res.task.batch({n: a[f.test.rows] for n, a in f.arrays.items()})


def taken(res: Resident) -> dict[int, set[int]]:
    a = toy.federation(res.config).arrays
    return {u: set(a["y"][a["user"] == u].tolist()) for u in range(40)}


def test_the_last_item_is_left_out_and_the_one_before_validates() -> None:
    user = ["a", "b", "a", "a", "b", "c", "a", "b"]
    item = [10, 20, 30, 10, 40, 10, 50, 60]
    d = leave_one_out("set", np.array(user), np.array(item), np.array([5, 1, 2, 9, 2, 1, 7, 3]))
    assert d.kind == d.form == "items" and d.label_names == ("10", "20", "30", "40", "50", "60") and d.classes == 6
    assert d.train.split is not None and d.train.client is not None and d.test.client is not None
    names = [d.label_names[i] for i in d.train.y]
    assert list(zip(d.train.client, names, d.train.split)) == [
        ("a", "30", "train"), ("a", "10", "valid"), ("b", "20", "train"), ("b", "40", "valid")
    ]  # fmt: skip
    assert [d.label_names[i] for i in d.test.y] == ["50", "60"] and d.test.client.tolist() == ["a", "b"]
    assert [n for n in d.notes if n.startswith("1 users")] and [n for n in d.notes if n.startswith("1 rows")]
    with pytest.raises(ConfigError, match="no user of set took at least 3 different items"):
        leave_one_out("set", np.array(["a", "a"]), np.array([1, 1]))


def test_of_a_table(tmp_path: Path) -> None:
    rows = {"who": ["a"] * 4 + ["b"] * 4, "what": [1, 2, 3, 4, 3, 2, 1, 5], "at": [4, 3, 2, 1, 1, 2, 3, 4]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    pq.write_table(pa.table({n: v[:1] for n, v in rows.items()}), tmp_path / "test.parquet")
    spec = {"name": f"parquet:{tmp_path}", "item": "what", "client": "who", "time": "at"}
    d = data.load(Named.model_validate(spec), 0)
    assert d.kind == "items" and [d.label_names[i] for i in d.test.y] == ["1", "5"]
    wrong = data.check(
        Named.model_validate({"name": f"parquet:{tmp_path}", "time": "at", "features": ["what"], "label": "who"})
    )
    assert wrong == ["task.data.time: belongs to item: COLUMN, what a row's user took"]
    with pytest.raises(
        ConfigError, match=r"task\.data\.client: missing, the column of .* that says whose the items are"
    ):
        data.load(Named.model_validate({n: v for n, v in spec.items() if n != "client"}), 0)


def test_one_user_is_one_client_and_its_items_are_apart() -> None:
    res = resident()
    f = toy.federation(res.config)
    assert isinstance(res.task, Ranking) and f.task == "ranking" and f.columns == ("user",)
    for u in range(40):
        rows = [i[u] for i in (f.train, f.val, f.test)]
        assert [len(r) for r in rows] == [10, 1, 1] and set(f.arrays["user"][np.concatenate(rows)]) == {u}
        assert len(set(f.arrays["y"][np.concatenate(rows)].tolist())) == 12


@pytest.mark.parametrize("negatives", [99, 20])
def test_negatives_are_fixed_different_and_never_taken(negatives: int) -> None:
    res, again = resident(negatives=negatives), resident(negatives=negatives)
    fixed = res.task._fixed  # type: ignore[attr-defined]
    assert fixed.shape == (40, negatives) and torch.equal(fixed, again.task._fixed)  # type: ignore[attr-defined]
    for u, own in taken(res).items():
        found = fixed[u].tolist()
        assert len(set(found)) == negatives and not set(found) & own and min(found) >= 0 and max(found) < 150
    assert len({tuple(r) for r in fixed.tolist()}) == 40


def test_the_rth_item_that_a_user_never_took() -> None:
    res = resident()
    t: Any = res.task
    for u, own in list(taken(res).items())[:5]:
        free = [i for i in range(t.classes) if i not in own]
        assert int(t._free[u]) == len(free)
        r = torch.arange(len(free))[None]
        assert t._unseen(torch.tensor([u]), r)[0].tolist() == free


def test_negatives_of_a_step_are_drawn_evenly_from_those() -> None:
    res = resident(sample=50)
    t: Any = res.task
    user = torch.full((200,), 3)
    drawn = t.negatives(user, torch.tensor(7))
    counts = torch.bincount(drawn.reshape(-1), minlength=t.classes)
    own = taken(res)[3]
    assert counts[list(own)].sum() == 0 and counts.sum() == 10000
    expected = 10000 / (t.classes - len(own))
    assert (counts[[i for i in range(t.classes) if i not in own]] - expected).abs().max() < 6 * math.sqrt(expected)
    assert not torch.equal(drawn, t.negatives(user, torch.tensor(8)))
    moved = t.loss(t.initial, scored_by(res), torch.tensor(7)), t.loss(t.initial, scored_by(res), torch.tensor(8))
    assert not torch.equal(*moved)


def test_rank_hit_and_gain_by_hand() -> None:
    t: Any = resident(k=[1, 3], negatives=4).task
    p = torch.tensor([[2.0, 1, 1, 1, 1], [2.0, 3, 1, 1, 1], [2.0, 2, 3, 1, 1], [0.0, 1, 1, 1, 1]], dtype=torch.float64)
    m = t.judge_mean(p, {})
    assert m["hr@1"].tolist() == [1, 0, 0, 0] and m["hr@3"].tolist() == [1, 1, 1, 0]
    gains = [1.0, math.log(2) / math.log(3), math.log(2) / math.log(4), 0.0]
    assert m["ndcg@3"].tolist() == pytest.approx(gains) and m["ndcg@1"].tolist() == [1, 0, 0, 0]
    assert float(m["loss"][0]) == pytest.approx((math.log1p(math.exp(-2)) + 4 * math.log1p(math.exp(1))) / 5)


@pytest.mark.parametrize("negatives", [99, "all"])
def test_chance_constant_and_perfect_scorers(negatives: Any) -> None:
    res = resident(negatives=negatives)
    t: Any = res.task
    batch = scored_by(res)
    many = {n: x.repeat(50, *[1] * (x.dim() - 1)) for n, x in batch.items()}  # 2000 rankings

    def judged(score: Any, batch: Any) -> Any:
        return t.read_by(score).metrics(t.initial, batch)

    constant = judged(lambda params, items: torch.zeros(items.shape, dtype=torch.float64), batch)
    assert constant["hr@10"].sum() == constant["ndcg@10"].sum() == 0
    table = torch.zeros(t.classes, dtype=torch.float64)
    one = {n: x[:1] for n, x in batch.items()}
    table[one["y"]] = 1
    perfect = judged(lambda params, items: table[items], one)
    assert perfect["hr@10"].tolist() == perfect["ndcg@10"].tolist() == [1]
    torch.manual_seed(0)
    guess = judged(lambda params, items: torch.rand(items.shape, dtype=torch.float64), many)
    among = 100 if negatives == 99 else t.classes - 12 + 1
    share = 10 / among
    assert float(guess["hr@10"].mean()) == pytest.approx(share, abs=4 * math.sqrt(share / 2000))
    assert (guess["ndcg@10"] <= guess["hr@10"]).all()


def test_measures_are_named_by_k_and_known_before_the_start() -> None:
    t = resident(k=[5, 20]).task
    assert t.row_measures == ("loss", "hr@5", "ndcg@5", "hr@20", "ndcg@20")


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_plain_averaging_learns_what_is_popular(executor: str) -> None:
    more = {**CHANGES, "local": {"optimizer": {"lr": 1.0}, "epochs": 3}}
    done = toy.simulate("fedavg", executor=executor, dtype="float64", rounds=6, **more)
    first, last = (done._replace(state=s).scores()[0] for s in (done.initial, done.state))
    assert last["loss/global"] < first["loss/global"] and last["loss/personal"] < first["loss/personal"]
    assert set(last) >= {"hr@10/global", "ndcg@10/personal_ex"}


def refused(task: Any, **federation: Any) -> str:
    base = {"clients": 20, "per_round": None, "partition": {"kind": "natural"}}
    with pytest.raises(ConfigError) as caught:
        Federations().of(good(task={"data": TASTES, "model": "factors", **task}, federation={**base, **federation}))
    return str(caught.value)


def test_what_cannot_be_ranked_is_refused() -> None:
    said = refused({"kind": {"name": "ranking", "negatives": 139}})
    assert re.match(
        r"task\.kind\.negatives: 139 found, but user \d+ never took only (\d+) of \d+ items; allowed: 4 \(sample\) to \1, all",
        said,
    )
    assert "task.model: mlp found, task.kind: ranking learns with factors, ncf, or a network of your own" in refused(
        {"model": "mlp"}
    )
    assert "task.kind: classify found, task.data holds items that users took; allowed: auto, ranking" in refused(
        {"kind": "classify"}
    )
    assert (
        "federation.partition.kind: iid found, synthetic:tastes says who took which item; allowed: natural"
        in refused({}, partition={"kind": "iid"})
    )
    assert "task.kind.k: 0 found, allowed: whole numbers >= 1" in refused({"kind": {"name": "ranking", "k": [0]}})
