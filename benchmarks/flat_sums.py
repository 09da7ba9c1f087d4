"""FedAvg without sums on the way, which `benchmarks/lifl.py` compares with."""

from __future__ import annotations

from typing import Any

from rayfed import tree
from rayfed.methods.fedavg import FedAvg


class Flat(FedAvg):
    """FedAvg whose server adds up the updates itself, one after another, in the order of the clients."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]})
        shares = (got.examples / got.examples.sum()).tolist()
        total = tree.zeros(state["model"])
        for share, update in zip(shares, got.gather("delta").values(), strict=True):
            total = tree.add(total, update, share)
        return {"model": tree.add(state["model"], total)}
