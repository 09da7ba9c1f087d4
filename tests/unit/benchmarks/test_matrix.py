"""The matrix of attacks and rules: what is run, and verdicts of literal numbers."""

from __future__ import annotations

from typing import Any

import matrix
import pytest

from rayfed.launch.preflight import load_request


@pytest.mark.parametrize("method", ["fedavg", "disue", "ifca"])
def test_every_study_is_valid(method: str) -> None:
    for attack in (matrix.NOBODY, *matrix.ATTACKS):
        made: Any = load_request(matrix.study(method, attack, list(matrix.RULES), 2, 3))
        assert len(made.arms) == 9 * (1 if attack == matrix.NOBODY else 2) and made.seeds == (0, 1)
        assert {c.method.name for c in made.arms.values()} == {method}
        shares = {a.options["clients"] for c in made.arms.values() for a in c.attacks}
        assert shares == (set() if attack == matrix.NOBODY else {0.1, 0.3})
    f = {c.aggregate.options["f"] for c in made.arms.values() if "f" in c.aggregate.options}
    assert f == {3 if method == "ifca" else 6}


def test_verdicts_and_page_by_hand() -> None:
    """One rule ten points worse where nobody attacks, thirty better under sign; another not distinguishable."""
    seeds = [str(i) for i in range(8)]
    noise = [0.001 * (-1) ** i for i in range(8)]

    def around(mean: float, more: float = 1.0) -> dict[str, float]:
        return {s: mean + more * e for s, e in zip(seeds, noise, strict=True)}

    cells = {
        "fedavg/nobody/0/mean": around(0.9), "fedavg/nobody/0/krum": around(0.8, -1), "fedavg/nobody/0/median": around(0.9, 40),
        "fedavg/sign/0.1/mean": around(0.5), "fedavg/sign/0.1/krum": around(0.8, 2), "fedavg/sign/0.1/median": around(0.5, 30),
    }  # fmt: skip
    judged = matrix.verdicts(cells)
    assert {n: j["verdict"] for n, j in judged.items()} == {
        "fedavg/nobody/0/krum": "worse", "fedavg/nobody/0/median": "undecided",
        "fedavg/sign/0.1/krum": "better", "fedavg/sign/0.1/median": "undecided",
    }  # fmt: skip
    text = matrix.page(cells, 7200.0, 8, 20)
    assert "| fedavg | krum | -10.0 [-10.2, -9.8] | worse |" in text and "48 runs, 2.00 hours." in text
    assert "| krum | 80.0 **-** | 80.0 **+** / - |" in text and "| mean | 90.0 | 50.0 / - |" in text
