"""FedMAC: what is absent changes nothing, the table's mean by hand, weights of the network, and what it reduces to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.data.modalities import Modality
from rayfed.methods import fedmac
from rayfed.models.modalities import Modalities
from tests import toy

OFF = {"name": "fedmac", "alpha": 0.0, "beta_inter": 0.0, "beta_intra": 0.0}


def network(number: int = 3, absent: str = "refined") -> Modalities:
    torch.manual_seed(0)
    of = [Modality(f"m{i}", "measurements", (2,)) for i in range(number)]
    return Modalities(4, of, 5, 6, absent, True).double()


def rows(there: list[list[int]]) -> torch.Tensor:
    flags = torch.tensor(there).double()
    x = torch.randn(len(flags), 2 * flags.shape[1], generator=torch.Generator().manual_seed(1)).double()
    return torch.cat([x, flags], 1)


@pytest.mark.parametrize("absent", ["skip", "zero", "learned", "refined"])
def test_what_is_absent_may_be_nan_and_changes_neither_answers_nor_gradients(absent: str) -> None:
    net, x = network(absent=absent), rows([[1, 0, 1], [0, 1, 0]])
    broken = x.clone()
    broken[0, 2:4] = torch.nan
    broken[1, [0, 1, 4, 5]] = torch.nan
    slopes = []
    for given in (x, broken):
        net.zero_grad()
        out = net(given)
        out.square().sum().backward()
        slopes.append([out.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


def test_weights_of_others_sum_to_one_and_are_zero_for_what_is_absent() -> None:
    net, seen = network(), {}
    net.fusion.refine.register_forward_hook(lambda m, args, out: seen.update(w=out[1]))
    net(rows([[1, 0, 1], [0, 1, 0], [1, 1, 1]]))
    w = seen["w"]
    assert w[0, 0].tolist() == [0, 0, 1] and w[0, 2].tolist() == [1, 0, 0]
    assert w[1, 1].tolist() == [0, 0, 0] and w[1, 0].tolist() == [0, 1, 0]
    torch.testing.assert_close(w[2].sum(-1), torch.ones(3).double())


def test_permuted_modalities_with_their_parameters_answer_alike() -> None:
    net, other, x = network(), network(), rows([[1, 0, 1], [1, 1, 1]])
    turn = [2, 0, 1]  # modality i of the other is turn[i] of the first
    state = net.state_dict()
    moved = {n: p[turn] if n.split(".")[-1] in ("absent", "present", "query", "bias") and "fusion" in n and "score" not in n else p
             for n, p in state.items()}  # fmt: skip
    moved["fusion.refine.weight"] = state["fusion.refine.weight"][turn]
    moved |= {
        n.replace("m0", f"m{i}"): state[n.replace("m0", f"m{t}")]
        for n in state
        if ".m0." in n
        for i, t in enumerate(turn)
    }
    other.load_state_dict(moved)
    at = [2 * t + k for t in turn for k in (0, 1)] + [6 + t for t in turn]
    torch.testing.assert_close(other(x[:, at]), net(x))


def test_a_row_with_one_modality_has_no_reconstruction() -> None:
    there = torch.tensor([[True, False], [True, True]])
    predicted, z = torch.ones(2, 2, 2), torch.tensor([[[9.0, 9], [9, 9]], [[1.0, 3], [0, 1]]])
    assert fedmac.reconstruction(predicted, z, there).tolist() == [0, (2 + 0.5) / 2]


def test_the_table_by_hand() -> None:
    """E = 1, 3, 9 and 10, 30, 0 rows that lack the modality: (10 + 90) / 40; nobody lacks the second one."""
    c, e = torch.tensor([[10.0, 0], [30, 0], [0, 0]]), torch.tensor([1.0, 3.0, 9.0])
    got = fedmac.by_missing((c * e[:, None]).sum(0)[:, None], c.sum(0))
    assert got.tolist() == [[2.5], [0]] and float(e.mean()) == pytest.approx(4.333, abs=1e-3)


def test_contrast_by_hand_and_none_of_two_rows() -> None:
    a = torch.eye(3).double()
    everybody = torch.ones(3, dtype=torch.bool)
    found = fedmac.infonce(a, a, everybody, everybody, 1.0)
    torch.testing.assert_close(found, torch.log1p(2 * torch.exp(torch.tensor(-1.0))).expand(3).double())
    two = torch.tensor([True, True, False])
    assert fedmac.infonce(a, a, two, two, 1.0).tolist() == [0, 0, 0]


def test_one_less_takes_one_present_modality_of_rows_with_two() -> None:
    there = torch.tensor([[True, True, False], [False, True, False], [True, True, True]])
    gone, several = fedmac.one_less(there, torch.tensor(5))
    assert several.tolist() == [True, False, True] and gone.sum(1).tolist() == [1, 0, 1] and bool((there | ~gone).all())


def test_without_its_losses_and_with_the_plain_table_it_is_fedavg_to_the_bit() -> None:
    runs = [toy.simulate(m, executor="vmap", **toy.MODAL) for m in ({**OFF, "table": "mean"}, "fedavg")]
    assert tree.same(runs[0].state, runs[1].state)


def test_where_nothing_is_absent_the_table_stays_and_all_else_is_fedavg() -> None:
    whole: Any = toy.merge(toy.MODAL, {"federation": {"modalities": {"absent": 0.0}}})
    done, plain = (toy.simulate(m, executor="vmap", **whole) for m in (OFF, "fedavg"))
    assert torch.equal(done.state["model"][fedmac.TABLE], done.initial["model"][fedmac.TABLE])
    assert tree.same(done.state, plain.state)


def test_a_network_that_completes_nothing_is_refused_by_name() -> None:
    c = toy.config("fedmac", **toy.merge(toy.MODAL, {"task": {"model": {"absent": "skip"}}}))
    from rayfed.launch import model_check

    (problem,) = model_check.find_problems({"": model_check.question(c, toy.federation(c))})[""]
    assert problem.startswith("method.name: fedmac found, and task.model: modalities does not complete")
