"""FDLoRA: private adapters trained once, a global one with momentum at the server, and a search for how to mix them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rayfed import tree
from rayfed.adapters import lora
from rayfed.engine.evaluation import Evaluation
from rayfed.methods.fdlora import mixed, outer_step
from tests import toy
from tests.tiny import WHOLE, descend
from tests.toy import ToyFed

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
ALL: dict[str, Any] = {"name": "fdlora", "beta": 0.0}


def test_both_stages(on_bert: OnBert) -> None:
    """Everyone trains alone once; the mean of it is what plain averages with equal weights start from."""
    done = toy.simulate(ALL, dtype="float64", **on_bert(WHOLE))
    fed, start = done.fed, done.initial["model"]
    everyone = range(fed.population)
    private = {c: descend(fed, c, start, lambda n: True, 3, 0.5) for c in everyone}
    g = {n: sum(private[c][n] for c in everyone) / fed.population for n in start}
    for draw in fed.drawn:
        trained = [descend(fed, c, g, lambda n: True, 3, 0.5) for c in draw.ids]
        g = {n: sum(t[n] for t in trained) / len(trained) for n in g}
    torch.testing.assert_close(done.state["model"], g, rtol=1e-7, atol=1e-9)
    kept = done.clients()
    assert {int(c) for c in kept} == set(everyone)
    for c in everyone:
        torch.testing.assert_close(kept[str(c)]["own"], private[c], rtol=1e-8, atol=1e-10)


class Silent(ToyFed):
    """In the first round nobody replies."""

    def ask(self, visit: Any, to: Any, **how: Any) -> Any:
        return super().ask(visit, [] if self.round == 1 else to, **how)


def test_stage_1_is_asked_again_where_nobody_replied(on_bert: OnBert) -> None:
    one, two = (toy.simulate(ALL, kind=Silent, rounds=2, until=r, **on_bert({})) for r in (1, 2))
    assert tree.same(one.state, one.initial) and not one.clients()
    assert two.state["begun"] and len(two.clients()) == two.fed.population


def test_the_outer_step_by_hand() -> None:
    """Gradients -1 and -1, eta 1, beta 1/2: v = 1, 1.5; Nesterov's steps 1.5 and 1.75, heavy-ball's 1 and 1.5."""
    for nesterov, want in ((True, 3.25), (False, 2.5)):
        x, v = {"w": torch.zeros(())}, {"w": torch.zeros(())}
        for _ in range(2):
            x, v = outer_step(x, {"w": -torch.ones(())}, v, 1.0, 0.5, nesterov)
        assert float(x["w"]) == want


def test_the_search_finds_the_least_of_the_grid(on_bert: OnBert) -> None:
    """Each pair of weights tried by hand on the client's own first rows."""
    done = toy.simulate({"name": "fdlora", "grid": 3, "rows": 7}, dtype="float64", **on_bert({}))
    fed, task = done.fed, done.fed.task
    c = 0
    shared = fed.method.serve(done.state)
    found = fed.dispatch.ask(Evaluation.SERVED, [c], shared=shared, mine={}).gather("model")[c]
    rows = fed.federation.train[c][:7]
    x, y = (torch.as_tensor(fed.federation.arrays[k][rows]) for k in ("x", "y"))
    own, g = done.clients()[str(c)]["own"], done.state["model"]
    scores = {}
    for w in [(a, b) for a in (0.0, 0.5, 1.0) for b in (0.0, 0.5, 1.0) if a or b]:
        scores[w] = float(F.cross_entropy(task.apply(mixed(own, g, *w), x), y)) + 0.05 * sum(w)
    best = min(scores, key=scores.__getitem__)
    torch.testing.assert_close(found, mixed(own, g, *best), rtol=1e-12, atol=1e-14)


def test_mixing_crosses_the_factors_and_averages_the_head() -> None:
    """(w_1 B_p + w_2 B_g)(w_1 A_p + w_2 A_g): with w = (1/2, 1/2), B = 2 and 4, A = 1 and 3 it is 3 * 2; heads 1 and 5 give 3."""
    names = lora.Names("q.lora_B.default.weight", "q.lora_A.default.weight")
    p, g = (
        dict(zip((*names, "head.weight"), torch.tensor(v), strict=True)) for v in ([2.0, 1.0, 1.0], [4.0, 3.0, 5.0])
    )
    made = mixed(p, g, 0.5, 0.5)
    assert float(made[names.b] * made[names.a]) == 6.0 and float(made["head.weight"]) == 3.0
    assert tree.same(mixed(p, g, 1.0, 0.0), p) and tree.same(mixed(p, g, 0.0, 1.0), g)


def test_a_client_of_no_stage_1_is_served_the_global_adapter(on_bert: OnBert) -> None:
    done = toy.simulate("fdlora", **on_bert({"federation": {"holdout": {"kind": "clients", "fraction": 0.3}}}))
    held = done.fed.population
    shared = done.fed.method.serve(done.state)
    found = done.fed.dispatch.ask(Evaluation.SERVED, [held], shared=shared, mine={}).gather("model")[held]
    assert tree.same(found, {n: done.state["model"][n] for n in found})


@pytest.mark.parametrize("sync", [None, 1])
def test_sync_copies_the_locally_trained_adapter(on_bert: OnBert, sync: int | None) -> None:
    done = toy.simulate({**ALL, "sync": sync}, rounds=1, dtype="float64", **on_bert(WHOLE))
    c = done.fed.drawn[0].ids[0]
    first = descend(done.fed, c, done.initial["model"], lambda n: True, 3, 0.5)
    kept = done.clients()[str(c)]["own"]
    head = done.fed.task.head[0]
    assert torch.allclose(kept[head], first[head]) == (sync is None)
