"""A method whose client `bad` misbehaves as `how` says; its state counts visits, its reply has parts of several kinds."""

import time
import weakref

import numpy as np
import torch

from rayfed import tree
from rayfed.fold import mean
from rayfed.method import Method, MethodSettings
from rayfed.training import sgd_visit
from rayfed.visits import Visit, visit
from rayfed.wire import ANY, PARAMS, SCALAR, Part, Wire, tensor

SEEN = []
MADE = []


class Odd(Method):
    class Settings(MethodSettings):
        bad: int = -1
        how: str = "well"
        size: int = 3

    wire = Wire(
        down={"model": Part(PARAMS), "m": Part(SCALAR)},
        up={
            "delta": Part(PARAMS, update=True),
            "k": Part(SCALAR),
            "row": Part(ANY),
            "c": Part(tensor("C", dtype=torch.float32)),
        },
        keep={"count": Part(SCALAR)},
        server={"model": Part(PARAMS)},
    )

    def own_init(self, task, client, key):
        return {"count": torch.zeros(())}

    @visit
    def train(self, task):
        bad, how = self.settings.bad, self.settings.how
        poison = {"nan": float("nan"), "inf": float("inf")}.get(how.split()[0], 0.0)

        def end(client, carry):
            info, shared, own = client.info, client.shared, client.own
            if how == "first":
                SEEN.append(0)
                if len(SEEN) == 1:
                    raise MemoryError("not just now")
            if how in ("raise", "once"):
                SEEN.append(int(info.client))
                if int(info.client) == bad and (how == "raise" or SEEN.count(bad) == 1):
                    raise ValueError(f"client {bad} has bad luck")

            def hurt(x):
                now = (info.client == bad) & ((info.round > 1) | (how != "nan late"))
                return torch.where(now, torch.full_like(x, poison), x) if poison else x

            if how == "slow":
                time.sleep(60)
            if how in ("exit", "ctrl-c", "hang") and int(info.client) == bad:
                if how == "hang":
                    time.sleep(60)
                raise SystemExit(0) if how == "exit" else KeyboardInterrupt

            where = how.split()[-1]
            delta = tree.sub(carry["model"], shared["model"])
            parts = {
                "delta": {**delta, "head.bias": hurt(delta["head.bias"])} if where in ("delta", "late") else delta,
                "k": hurt(info.client.to(task.dtype)) if where == "k" else info.client.to(task.dtype),
            }
            after = {"count": hurt(own["count"] + 1) if where == "count" else own["count"] + 1}
            parts |= {
                "undeclared": {"surprise": parts["k"]},
                "shape": {"k": torch.zeros(2)},
                "leaf": {"delta": parts["k"]},
                "names": {"delta": {"w": torch.zeros(3)}},
                "kind": {"c": torch.zeros(task.classes, dtype=torch.int64)},
            }.get(how, {})
            after |= {"more state": {"more": torch.zeros(())}, "state shape": {"count": torch.zeros(3)}}.get(how, {})
            return parts, {} if how == "no state" else after

        return sgd_visit(task.loss, self.local, end=end)

    @visit
    def rows(self, task):
        """A part of `size` numbers that follow from the client's id, as a tree of two leaves, and a small one."""
        n = self.settings.size

        def end(client, carry):
            c = (client.info.client + 1).to(task.dtype)
            row = torch.sin(c * torch.arange(1, n + 1, dtype=task.dtype))
            return {"row": {"b": row[: n // 3].reshape(-1, 1), "a": row[n // 3 :]}, "k": c}, client.own

        return Visit(lambda client: {}, (), end)

    @visit
    def one_by_one(self, task):
        """Notes how many earlier replies are still in memory."""

        def end(client, carry):
            SEEN.append(sum(made() is not None for made in MADE))
            memory = np.ones(1000, np.float32)
            MADE.append(weakref.ref(memory))
            return {"row": {"a": torch.from_numpy(memory)}}, client.own

        return Visit(lambda client: {}, (), end, vectorize="looks around")

    @visit
    def idle(self, task):
        """Does and sends nothing."""
        return Visit(lambda client: {}, (), lambda client, carry: ({}, client.own))

    @visit
    def writes(self, task):
        """Breaks the rule that nothing is written in place: into what was broadcast, and into its own state."""

        def begin(client):
            for x in client.shared["model"].values():
                x.add_(1.0)
            return {}

        return Visit(begin, (), lambda client, carry: ({"k": client.shared["model"]["head.bias"].sum()}, client.own))

    def round(self, state, fed, task):
        down = {"model": state["model"], **({"extra": torch.zeros(())} if self.settings.how == "down" else {})}
        mine = {c: {"m" if self.settings.how != "mine" else "other": torch.tensor(1.0)} for c in range(fed.population)}
        self.last = fed.ask(self.train, fed.sample(), shared=down, mine=mine, fold=(mean("delta"), mean("k", "one")))
        new = tree.add(state["model"], self.last.folded["delta"])
        made = {"server nan": float("nan"), "server inf": float("inf"), "server large": 3e38}.get(self.settings.how)
        if made is not None and fed.round == 2:
            new["head.bias"] = torch.full_like(new["head.bias"], made)
        return {"model": new}
