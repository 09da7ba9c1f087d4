"""FeDeRA: it starts at the pretrained network, whose largest directions are what trains; then it is FedIT on the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rayfed.adapters import lora
from tests import toy
from tests.tiny import WHOLE, Watched, descend

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


def test_it_starts_at_the_pretrained_network(on_bert: OnBert) -> None:
    fed = toy.make_fed(toy.config("federa", dtype="float64", **on_bert({})))
    start = fed.method.init(fed.task, 1)["model"]
    x = torch.as_tensor(fed.federation.arrays["x"][:5])
    bare = {n: torch.zeros_like(p) if lora.is_b(n) else p for n, p in fed.task.init_params(1).items()}
    torch.testing.assert_close(fed.task.apply(start, x), fed.task.apply(bare, x), rtol=1e-9, atol=1e-9)
    for n in lora.pairs(fed.task.params_like):
        name, _ = lora.weight_of(fed.task, n)
        w = fed.task.frozen[name].numpy()
        u, s, v = np.linalg.svd(w)
        largest = (u[:, :2] * s[:2]) @ v[:2]
        np.testing.assert_allclose((start[n.b] @ start[n.a]).numpy(), largest, atol=1e-10)
        np.testing.assert_allclose(start[name].numpy(), w - 4.0 * largest, atol=1e-10)  # alpha 8, rank 2
        sides = start[n.b].norm(dim=0), start[n.a].norm(dim=1)
        for side in sides:
            np.testing.assert_allclose(side.numpy(), np.sqrt(s[:2]), rtol=1e-9)


def test_then_the_factors_are_averaged_and_the_base_stays(on_bert: OnBert) -> None:
    done = toy.simulate("federa", dtype="float64", kind=Watched, **on_bert(WHOLE))
    model = done.initial["model"]
    for draw in done.fed.drawn:
        n = {c: len(done.fed.federation.train[c]) for c in draw.ids}
        trained = {c: descend(done.fed, c, model, lambda x: x in done.fed.task.params_like, 3, 0.5) for c in draw.ids}
        model = {k: sum(n[c] * trained[c][k] for c in draw.ids) / sum(n.values()) for k in model}
    torch.testing.assert_close(done.state["model"], model, rtol=1e-8, atol=1e-10)
    frozen = [k for k in model if k not in done.fed.task.params_like]
    assert frozen and all(torch.equal(done.state["model"][k], done.initial["model"][k]) for k in frozen)


def test_what_travels_is_fedits(on_bert: OnBert) -> None:
    ours, plain = (toy.simulate(m, rounds=1, **on_bert({})).rows[0] for m in ("federa", "fedit"))
    assert [ours[f"bytes/{way}"] for way in ("up", "down")] == [plain[f"bytes/{way}"] for way in ("up", "down")]


def test_by_hand() -> None:
    """W0 = diag(9, 4), rank 1: B = (3, 0), A = (3, 0); with s = 1 diag(0, 4) stays frozen."""
    from rayfed.methods.federa import start_pair

    w = torch.diag(torch.tensor([9.0, 4.0])).double()
    b, a = start_pair(w, torch.ones(1, 2))
    np.testing.assert_allclose(b.numpy(), [[3.0], [0.0]], atol=1e-12)
    np.testing.assert_allclose(a.numpy(), [[3.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose((w - b @ a).numpy(), np.diag([0.0, 4.0]), atol=1e-12)


def test_a_start_of_its_own_is_refused(on_bert: OnBert) -> None:
    from rayfed.methods.federa import FeDeRA

    config = toy.config("fedit", **on_bert({}))
    method = FeDeRA(FeDeRA.Settings(), config)
    assert method.check(config) == []
    from_run = config.model_copy(update={"init": config.init.model_copy(update={"from_": "runs/x"})})
    assert method.check(from_run)[0].startswith("init.from: runs/x found, allowed with method.name: federa: null")
