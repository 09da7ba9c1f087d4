"""CoAction's transformer: problems can be permuted, attention is all that joins them, a sequence of one is linear in its value."""

from __future__ import annotations

import torch

from rayfed.models.coaction import CoAction

P = torch.rand(3, 2, dtype=torch.float64)


def made(together: bool, problems: int = 4) -> CoAction:
    torch.manual_seed(0)
    return CoAction(problems, 2, 8, 2, 2, 5, together).double()


def test_permuting_problems_permutes_answers() -> None:
    order = torch.tensor([2, 0, 3, 1])
    for together in (True, False):
        net = made(together)
        before = net(P)
        for p in ([net.embedding] if together else []) + list(net.heads.parameters()):
            p.data = p.data[order]
        torch.testing.assert_close(net(P), before[:, order])


def test_problems_attend_to_one_another_only_together() -> None:
    for together in (True, False):
        net = made(together)
        before = net(P)
        moved = net.embedding if together else net.heads.embedding
        moved.data[0, 0] += 1  # of all entries a norm would take it off again
        same = torch.isclose(net(P), before).flatten(0, 0).all(0).all(-1)
        assert same.tolist() == ([False] * 4 if together else [False, True, True, True])


def test_without_values_it_is_a_network_for_each_problem() -> None:
    net = made(True)
    for b in net.blocks:
        b.qkv.weight.data[16:], b.qkv.bias.data[16:] = 0, 0
    whole = net(P)
    for k in range(4):
        one = made(True, 1)
        names = {n: x for n, x in net.state_dict().items() if not n.startswith(("heads", "embedding"))}
        own = {n: x[k : k + 1] for n, x in net.state_dict().items() if n.startswith(("heads", "embedding"))}
        one.load_state_dict({**names, **own})
        torch.testing.assert_close(one(P)[:, 0], whole[:, k])
