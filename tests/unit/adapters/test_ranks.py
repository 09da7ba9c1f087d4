"""Clients of unequal LoRA ranks: held against PEFT, NumPy and plain PyTorch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import api, tree
from rayfed.adapters import lora, ranks
from rayfed.config.load import merge
from rayfed.config.schema import Config
from rayfed.errors import ConfigError
from tests import toy
from tests.configs import refusal
from tests.tiny import Watched, on_bert  # noqa: F401
from tests.unit.adapters.unequal import MIXED, OnBert, mixed

SCALES = [(None, False), (8.0, False), (None, True), (8.0, True)]  # alpha, rslora


def problem(on_bert: OnBert, rank: Any, **more: Any) -> str:  # noqa: F811
    return refusal(lambda: toy.config(**mixed(on_bert, rank=rank, **more)))


def test_ranks_are_drawn_with_exact_counts(on_bert: OnBert) -> None:  # noqa: F811
    c = toy.config(**mixed(on_bert, federation={"clients": 14, "holdout": {"kind": "clients", "fraction": 0.15}}))
    got = ranks.drawn(c, 12, 14)
    assert got.dtype == np.int64 and np.bincount(got[:12]).tolist() == [0, 6, 3, 0, 3]
    assert np.bincount(ranks.drawn(c, 10, 10)).tolist() == [0, 5, 3, 0, 2]  # 5, 2.5, 2.5: the lower rank first
    assert set(got[12:]) <= set(MIXED) and len(got) == 14
    assert (ranks.drawn(c, 12, 14) == got).all()
    others = [ranks.drawn(toy.config(**mixed(on_bert, seed=s)), 12, 14) for s in range(8)]
    assert any((o[:12] != got[:12]).any() for o in others)
    one = toy.config(**mixed(on_bert, rank=2))
    assert ranks.drawn(one, 12, 14).tolist() == [2] * 14 and not ranks.unequal(one) and ranks.unequal(c)
    assert ranks.drawn(toy.config(), 12, 14).tolist() == [0] * 14
    again = Config.from_dict(json.loads(json.dumps(c.to_dict())))  # as in a run's folder
    assert again.adapter == c.adapter and again.adapter.largest == 4  # type: ignore[union-attr]


def test_wrong_ranks_are_refused(on_bert: OnBert) -> None:  # noqa: F811
    assert "adapter.rank: the shares sum to 0.75, allowed: 1" in problem(on_bert, {2: 0.5, 4: 0.25})
    for wrong in (0, -1, 2.5, "many", {0: 0.5, 4: 0.5}, {}, None):
        assert "found, allowed: a whole number >= 1, or such numbers with their shares" in problem(on_bert, wrong), (
            wrong
        )
    assert "adapter.rank: -0.5 found as the share of rank 2, allowed: a number in (0, 1]" in problem(
        on_bert, {2: -0.5, 4: 1.5}
    )
    assert "adapter.rank: 17 found, the smallest layer 'query' allows at most 16" in problem(on_bert, {2: 0.5, 17: 0.5})
    assert "adapter.rank: a share of 0.01 found for rank 8, none of the 12 clients that" in problem(
        on_bert, {2: 0.99, 8: 0.01}
    )
    for name in ("fedex_lora", "lora_fair"):
        with pytest.raises(ConfigError, match=rf"adapter.rank: 1, 2, 4 found, method.name: {name} allows one: "):
            toy.config(name, **mixed(on_bert))
    with pytest.raises(ConfigError, match=r"init.from: an adapter to start stage 1 from needs one adapter.rank"):
        toy.config({"name": "slora", "sparse_rounds": 1}, **mixed(on_bert, init={"from": "."}))


def test_shares_are_replaced_as_one_value() -> None:
    assert merge({"rank": {2: 0.5, 8: 0.5}}, {"rank": {4: 1.0}}) == {"rank": {4: 1.0}}
    assert merge({"rank": {"2": 0.5, "8": 0.5}}, {"rank": {4: 1.0}}) == {"rank": {4: 1.0}}  # read back from a folder


def test_cut_and_trim() -> None:
    g = torch.Generator().manual_seed(0)
    t = {
        "x.lora_A.default.weight": torch.randn(4, 5, generator=g),
        "x.lora_B.default.weight": torch.randn(3, 4, generator=g),
    }
    t |= {"head": torch.ones(4, 4)}
    a, b = t["x.lora_A.default.weight"], t["x.lora_B.default.weight"]
    got = ranks.cut({"inner": t}, 2, 0.5)["inner"]
    assert torch.equal(got["x.lora_A.default.weight"], torch.cat([a[:2], torch.zeros(2, 5)]))
    assert torch.equal(got["x.lora_B.default.weight"], torch.cat([b[:, :2] / 2, torch.zeros(3, 2)], 1))
    assert torch.equal(got["head"], t["head"])
    assert tree.same(ranks.cut(ranks.cut(t, 2), 2), ranks.cut(t, 2))  # truncation, then padding, is idempotent
    many = tree.map(lambda x: torch.stack([x, x]), t)
    both = ranks.cut(many, torch.tensor([1, 3]))
    assert tree.same(tree.pick(both, 0), ranks.cut(t, 1)) and tree.same(tree.pick(both, 1), ranks.cut(t, 3))
    under = torch.vmap(lambda r: ranks.cut(t, r))(torch.tensor([1, 3]))
    assert tree.same(under, both)
    assert {n: tuple(x.shape) for n, x in ranks.trim(t, 3).items()} == {
        "x.lora_A.default.weight": (3, 5), "x.lora_B.default.weight": (3, 3), "head": (4, 4),
    }  # fmt: skip


OPTIMIZERS = [
    {"name": "sgd", "lr": 0.5, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    {"name": "adam", "lr": 0.01, "weight_decay": 0.1},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o["name"])
@pytest.mark.parametrize(("alpha", "rslora"), SCALES)
def test_a_smaller_rank_trains_as_a_model_of_that_rank(
    on_bert: OnBert,  # noqa: F811
    optimizer: dict[str, Any],
    alpha: float | None,
    rslora: bool,
) -> None:
    """Padding stays exactly zero, and the rest is what PEFT's own model of rank r_i, with its own scale, comes to."""
    more = {"local": {"optimizer": optimizer, "steps": 4}, "federation": {"per_round": None}}
    fed = toy.make_fed(toy.config(executor="vmap", dtype="float64", **mixed(on_bert, alpha, rslora=rslora, **more)))
    start = fed.task.fresh_params(3)
    g = torch.Generator().manual_seed(1)
    start = {
        n: torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.1 if "lora_B" in n else p for n, p in start.items()
    }
    fed.begin(1)
    got = fed.ask(fed.method.train, range(fed.population), shared={"model": start})
    moved = got.gather("delta")
    for r in MIXED:
        client = int(np.flatnonzero(fed.task.ranks[: fed.population] == r)[0])
        small = toy.make_fed(toy.config(dtype="float64", **mixed(on_bert, alpha, r, rslora, **more)))
        scale = scale_of(alpha, 4, rslora) / scale_of(alpha, r, rslora)
        given = {n: p * scale if ranks.is_b(n) else p for n, p in ranks.trim(start, r).items()}
        small.begin(1)
        want = small.ask(small.method.train, [client], shared={"model": given}).gather("delta")[client]
        here = moved[client]
        for n, p in here.items():
            held = ranks.trim({n: p}, r)[n]
            ours = held * scale if ranks.is_b(n) else held
            torch.testing.assert_close(ours, want[n], rtol=1e-8, atol=1e-11)
            padding = p.clone()
            (padding[:r] if ranks.is_a(n) else padding[:, :r] if ranks.is_b(n) else padding)[:] = 0
            assert not padding.any(), n
        assert any(want[n].any() for n in want if ranks.is_a(n))


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_scores_are_at_the_clients_rank(on_bert: OnBert, alpha: float | None) -> None:  # noqa: F811
    """What a client is served is the truncated model, with the product that the server means; the global model the whole one."""
    done = toy.simulate("fedit", executor="vmap", dtype="float64", **mixed(on_bert, alpha))
    row, clients = done.scores()
    task, fed, model = done.fed.task, done.fed.federation, done.state["model"]
    for c in clients:
        rows = fed.test[c["client"]]
        batch = {k: torch.as_tensor(fed.arrays[k][rows]) for k in ("x", "y")}
        want = task.metrics(ranks.cut(model, int(task.ranks[c["client"]])), batch)["loss"].mean()
        assert c["loss"] == pytest.approx(float(want), rel=1e-9)
    pool = {k: torch.as_tensor(fed.arrays[k][fed.pooled_test]) for k in ("x", "y")}
    assert row["loss/global"] == pytest.approx(float(task.metrics(model, pool)["loss"].mean()), rel=1e-9)
    whole = task.metrics(model, pool)["loss"].mean()
    assert abs(float(task.metrics(ranks.cut(model, 1), pool)["loss"].mean() - whole)) > 1e-6  # ranks matter


@pytest.mark.parametrize(
    ("method", "alpha"), [("fedavg", None), ("scaffold", 8.0), ("fedsa_lora", 8.0), ("rolora", 8.0)]
)
def test_loop_is_vmap_is_debug(on_bert: OnBert, method: str, alpha: float | None) -> None:  # noqa: F811
    loop, vmap, debug = (
        toy.simulate(method, executor=e, dtype="float64", **mixed(on_bert, alpha)) for e in ("loop", "vmap", "debug")
    )
    went = float(tree.norm(tree.sub(loop.state, loop.initial)))
    assert went > 1e-3
    for other, tolerance in ((vmap, 1e-9 * went), (debug, 0.0)):
        assert float(tree.norm(tree.sub(loop.state, other.state))) <= tolerance
        assert [r["bytes/up"] for r in other.rows] == [r["bytes/up"] for r in loop.rows]


def replied(method: Any, on_bert: OnBert, alpha: float | None) -> tuple[Any, Any, Any]:  # noqa: F811
    """(run of 2 rounds, server state after round 1, replies of round 2)."""
    more = {"executor": "vmap", "dtype": "float64", **mixed(on_bert, alpha)}
    done: Any = toy.simulate(method, kind=Watched, **more)
    one = toy.simulate(method, rounds=1, **more)
    return done, one.state, done.fed.got[-1]


def scale_of(alpha: float | None, r: int, rslora: bool = False) -> float:
    return (2 * r if alpha is None else alpha) / (math.sqrt(r) if rslora else r)


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_fedit_pads_updates_with_zeros(on_bert: OnBert, alpha: float | None) -> None:  # noqa: F811
    done, before, got = replied({"name": "fedit", "gap": True}, on_bert, alpha)
    p = (got.examples / got.examples.sum()).numpy()
    model, new = before["model"], done.state["model"]
    assert len({r.rank for r in got}) > 1
    off = whole = 0.0
    for n in lora.pairs(model):
        a, b = model[n.a].numpy().copy(), model[n.b].numpy().copy()
        exact = np.zeros((b.shape[0], a.shape[1]))
        for w, reply, d in zip(p, got, tree.unstack(got.stacked("delta")), strict=True):
            r = reply.rank
            a[:r] += w * d[n.a].numpy()[:r]
            b[:, :r] += w * d[n.b].numpy()[:, :r]
            exact += w * (model[n.b] + d[n.b]).numpy()[:, :r] @ (model[n.a] + d[n.a]).numpy()[:r]
        np.testing.assert_allclose(new[n.a], a, atol=1e-13)
        np.testing.assert_allclose(new[n.b], b, atol=1e-13)
        off, whole = off + ((exact - b @ a) ** 2).sum(), whole + (exact**2).sum()
    assert done.rows[1]["lora/gap"] == pytest.approx((off / whole) ** 0.5, rel=1e-7)


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_flexlora_serves_the_best_pair_of_each_rank(on_bert: OnBert, alpha: float | None) -> None:  # noqa: F811
    """The mean of what clients add to W, alpha / r_i B_i A_i, cut to rank r_i by NumPy, is what a client of rank r_i adds."""
    done, before, got = replied("flexlora", on_bert, alpha)
    p, model, new = (got.examples / got.examples.sum()).numpy(), before["model"], done.state["model"]
    for n in lora.pairs(model):
        exact = np.zeros((16, 16))
        for w, reply, d in zip(p, got, tree.unstack(got.stacked("delta")), strict=True):
            r, s = reply.rank, scale_of(alpha, reply.rank)
            by = scale_of(alpha, 4) / s  # server's units to the client's
            exact += w * s * by * (model[n.b] + d[n.b]).numpy()[:, :r] @ (model[n.a] + d[n.a]).numpy()[:r]
        u, sv, v = np.linalg.svd(exact)
        for r in MIXED:
            held = ranks.cut({k: new[k] for k in n}, r)
            served = scale_of(alpha, 4) * (held[n.b] @ held[n.a]).numpy()
            np.testing.assert_allclose(served, (u[:, :r] * sv[:r]) @ v[:r], atol=1e-10)


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_flora_stacks_true_ranks(on_bert: OnBert, alpha: float | None) -> None:  # noqa: F811
    done: Any = toy.simulate("flora", rounds=1, executor="vmap", dtype="float64", kind=Watched, **mixed(on_bert, alpha))
    got, task, model = done.fed.got[-1], done.fed.task, done.initial["model"]
    p = (got.examples / got.examples.sum()).numpy()
    total = sum(r.rank for r in got)
    for n in lora.pairs(model):
        each = [(r.rank, d) for r, d in zip(got, tree.unstack(got.stacked("delta")), strict=True)]
        a = np.concatenate([w * (model[n.a] + d[n.a]).numpy()[:r] for w, (r, d) in zip(p, each, strict=True)])
        b = np.concatenate([d[n.b].numpy()[:, :r] for r, d in each], 1)
        assert a.shape == (total, 16) and b.shape == (16, total)
        name, _ = lora.weight_of(task, n)
        want = task.frozen[name].numpy() + scale_of(alpha, 4) * b @ a
        np.testing.assert_allclose(done.state["model"][name], want, atol=1e-12)
        assert np.abs(want - task.frozen[name].numpy()).max() > 1e-3


@pytest.mark.parametrize("method", ["ffa_lora", "rolora"])
@pytest.mark.parametrize("alpha", [None, 8.0])
def test_means_of_one_factor_are_exact(on_bert: OnBert, method: str, alpha: float | None) -> None:  # noqa: F811
    """Round 1 trains B: the server's W moves by the mean of what clients' alpha / r_i B_i A_i came to."""
    done: Any = toy.simulate(method, rounds=1, executor="vmap", dtype="float64", kind=Watched, **mixed(on_bert, alpha))
    got, model = done.fed.got[-1], done.initial["model"]
    p = (got.examples / got.examples.sum()).numpy()
    deltas = tree.unstack(got.stacked("delta" if method == "ffa_lora" else "b"))
    for n in lora.pairs(model):
        exact = np.zeros((16, 16))
        for w, reply, d in zip(p, got, deltas, strict=True):
            s = scale_of(alpha, reply.rank)
            own = d[n.b].numpy()[:, : reply.rank] * scale_of(alpha, 4) / s  # as the client has it
            exact += w * s * own @ model[n.a].numpy()[: reply.rank]
        after = scale_of(alpha, 4) * (done.state["model"][n.b] @ done.state["model"][n.a]).numpy()
        np.testing.assert_allclose(after, exact, atol=1e-12)
        assert np.abs(exact).max() > 1e-3 and torch.equal(done.state["model"][n.a], model[n.a])


def test_fedsa_shares_the_rows_that_are_held(on_bert: OnBert) -> None:  # noqa: F811
    done, before, got = replied("fedsa_lora", on_bert, 8.0)
    p = (got.examples / got.examples.sum()).numpy()
    for name, x in before["a"].items():
        want = x.numpy().copy()
        for w, reply, d in zip(p, got, tree.unstack(got.stacked("delta")), strict=True):
            want[: reply.rank] += w * d[name].numpy()[: reply.rank]
        np.testing.assert_allclose(done.state["a"][name], want, atol=1e-13)
    for c, state in done.clients().items():
        r = int(done.fed.task.ranks[int(c)])
        assert all(not b[:, r:].any() and b[:, :r].any() for n, b in state["rest"].items() if ranks.is_b(n))


def test_slora_starts_each_client_from_its_best_pair(on_bert: OnBert) -> None:  # noqa: F811
    spec = {"name": "slora", "sparse_rounds": 1}
    fed = toy.make_fed(toy.config(spec, executor="vmap", dtype="float64", **mixed(on_bert)))
    method, task = fed.method, fed.task
    fed.begin(1)
    state = method.round(method.init(task, 0), fed, task)
    factors, places = method.factors(state, task), method.places(task)  # type: ignore[attr-defined]
    for n in lora.pairs(factors):
        name, _ = lora.weight_of(task, n)
        v = np.zeros(256)
        v[places[name].numpy()] = state["sparse"][name].numpy()
        u, s, vt = np.linalg.svd(v.reshape(16, 16))
        for r in MIXED:
            held = ranks.cut({k: factors[k] for k in n}, r)
            np.testing.assert_allclose(2 * (held[n.b] @ held[n.a]).numpy(), (u[:, :r] * s[:r]) @ vt[:r], atol=1e-12)


def test_bytes_are_of_the_true_ranks(on_bert: OnBert) -> None:  # noqa: F811
    head = 16 * 3 + 3
    for method, per_rank in (("fedit", 2 * 32), ("ffa_lora", 2 * 16)):
        done = toy.simulate(method, executor="vmap", **mixed(on_bert))
        for row, draw in zip(done.rows, done.fed.drawn, strict=True):
            total = sum(int(done.fed.task.ranks[c]) for c in draw.ids)
            want = 4 * (per_rank * total + head * len(draw.ids))
            assert row["bytes/down"] == want and row["bytes/up"] == want + 8 * len(draw.ids)
    same = [toy.simulate("fedit", executor="vmap", **mixed(on_bert, rank=r)) for r in (2, {2: 1.0})]
    assert same[0].rows == same[1].rows and tree.same(same[0].state, same[1].state)


@pytest.mark.parametrize(("alpha", "rslora"), SCALES)
def test_a_clients_adapter_loads_in_peft_at_its_rank(
    on_bert: OnBert,  # noqa: F811
    alpha: float | None,
    rslora: bool,
    tmp_path: Path,
) -> None:
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForSequenceClassification

    changes = mixed(on_bert, alpha, rslora=rslora, adapter={"dropout": 0.2})
    done = toy.run_folder("fedit", tmp_path, executor="vmap", **changes)
    run = api.load(done.folder.path)
    assert isinstance(run, api.Run)
    fed = toy.make_fed(toy.config("fedit", **changes))
    base = changes["task"]["model"]["name"].removeprefix("hf:")

    def plain(where: Path) -> torch.Tensor:
        network = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        x = torch.as_tensor(fed.federation.arrays["x"][:12])
        made = PeftModel.from_pretrained(network, str(where)).eval()
        with torch.no_grad():
            return made(input_ids=x.clamp(min=0).long(), attention_mask=(x >= 0).long()).logits

    seen = {}
    for r in MIXED:
        client = int(np.flatnonzero(fed.task.ranks == r)[0])
        where = run.save_adapter(client, tmp_path / "out" / f"client-{client}")
        about = PeftConfig.from_pretrained(str(where))
        assert about.r == r and about.lora_alpha == (2 * r if alpha is None else alpha) and about.lora_dropout == 0.2
        assert about.use_rslora is rslora
        seen[r] = plain(where)
        want = run.model(client=client)(fed.federation.arrays["x"][:12])
        torch.testing.assert_close(seen[r], want, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(seen[1], seen[4], atol=1e-5)
    torch.testing.assert_close(seen[4], plain(done.folder.path / "model"))  # the run's own is of the largest rank
    assert PeftConfig.from_pretrained(str(done.folder.path / "model")).r == 4
    with pytest.raises(ConfigError, match="exists already"):
        run.save_adapter(0, tmp_path / "out")
    with pytest.raises(ConfigError, match="client: 99 found"):
        run.save_adapter(99, tmp_path / "other")
    assert not (tmp_path / "other").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".other")]
