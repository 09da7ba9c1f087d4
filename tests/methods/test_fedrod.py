"""Fed-RoD: the generic model without its balanced loss is FedAvg's; both heads by hand."""

from __future__ import annotations

import pytest
import torch

from rayfed import methods
from tests import toy

needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


@needs_fedavg
@pytest.mark.parametrize("clip", [None, 0.1])
def test_plain_cross_entropy_trains_fedavgs_model(clip: float | None) -> None:
    """The personal heads learn beside it and change nothing of it, clipped or not."""
    same = {"executor": "vmap", "dtype": "float64", "rounds": 3, "local": {"clip": clip}}
    done, plain = (toy.simulate(m, **same) for m in ({"name": "fedrod", "gamma": 0.0}, "fedavg"))
    torch.testing.assert_close(dict(done.state["model"]), dict(plain.state["model"]), rtol=0, atol=1e-14)
    assert all(float(s["personal"]["weight"].abs().max()) > 0 for s in done.clients().values())
    row, other = done.scores()[0], plain.scores()[0]
    for name in ("loss/global", "loss/unseen"):
        assert row[name] == pytest.approx(other[name], rel=1e-12), "held-out clients are served the generic model"


def test_rounds_and_served_models_by_hand(hand) -> None:
    """Balanced softmax: log-probabilities n_c e^{h_c} / sum over the client's own classes."""
    done = toy.simulate({"name": "fedrod", "gamma": 0.5}, rounds=3, **hand.WORK)
    model = {n: p.clone() for n, p in done.initial["model"].items()}
    own: dict[int, dict[str, torch.Tensor]] = {}
    blank = {"own." + n: torch.zeros_like(model[n]) for n in hand.HEAD}

    def personal(p, h):
        return h @ p["own.head.weight"].T + p["own.head.bias"]

    for draw in done.fed.drawn:
        updates, n = [], []
        for c in draw.ids:
            x, y = hand.data(done.fed, c)
            counts = torch.bincount(y, minlength=4).double() ** 0.5

            def loss(p, x=x, y=y, counts=counts):
                h = hand.features(p, x)
                generic = hand.classify(p, h)
                weighed = counts * torch.exp(generic)
                fair = -torch.log(weighed.gather(1, y[:, None])[:, 0] / weighed.sum(1)).mean()
                return fair + torch.nn.functional.cross_entropy(generic.detach() + personal(p, h.detach()), y)

            after = hand.descend({**model, **own.get(c, blank)}, loss)
            own[c] = {k: after[k] for k in blank}
            updates.append({k: after[k] - model[k] for k in model})
            n.append(len(y))
        model = {k: model[k] + u for k, u in hand.mean(updates, n).items()}
    hand.same(done.state["model"], model)
    for row in done.scores()[1]:
        x, y = hand.data(done.fed, row["client"], "test")
        h = hand.features(model, x)
        logits = hand.classify(model, h) + personal(own.get(row["client"], blank), h)
        assert row["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, y)), abs=1e-12)
