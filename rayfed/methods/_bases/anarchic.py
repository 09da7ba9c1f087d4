"""What AFA-CD and AFA-CS share: workers that come when they like and take as many steps as they like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from rayfed import MethodSettings, Part, keys, sgd_visit, tensor, tree, visit
from rayfed.clock import Clock
from rayfed.lazy import torch
from rayfed.methods._bases.asynchronous import Asynchronous
from rayfed.visits import steps

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config

DOWN = {"steps": Part(tensor(dtype="int64"), note="K_i, which in a deployment is the worker's own choice")}
SERVER = {"steps": Part(tensor("N", dtype="int64"), note="K_i of who is at work")}


class AnarchicSettings(MethodSettings):
    """Settings that both have."""

    buffer: int | None = Field(None, ge=1, description="Replies for a step; null: half of the workers at work.")
    server_lr: float = Field(0.5, gt=0, description="Step of the server, along a gradient.")
    least: int = Field(1, ge=1, description="Fewest local steps K_i, drawn anew for each visit.")
    most: int = Field(10, ge=1, description="Most local steps K_i.")


class Anarchic(Asynchronous):
    """Base: worker i is sent x_mu, takes K_i steps, K_i uniform in least..most by key, and sends the mean of their gradients,
    G_i = (x_mu - y) / (lr K_i), which here is minus its part `delta`. `local.epochs` and `local.steps` have no meaning."""

    def check(self, config: Config) -> list[str]:
        found, o, s = super().check(config), config.local.optimizer, self.settings
        if o.name != "sgd" or o.momentum or o.weight_decay:
            name = config.method.name
            found.append(
                f"local.optimizer: {name} sends mean gradients; it needs sgd without momentum and weight decay"
            )
        if s.least > s.most:
            found.append(f"method.least: {s.least} found, method.most: {s.most}; allowed: at most that")
        return found

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part == "steps" else super().cost(part, sent)

    def init(self, task: Task, key: int) -> Tree:
        return {**super().init(task, key), "steps": torch.zeros(task.population, dtype=torch.int64)}

    @visit
    def train(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            moved = tree.sub(carry["model"], client.shared["model"])
            return self.sent(tree.map(lambda d: d / client.info.sum_lr, moved), client.own)

        pieces = [(steps(self.settings.most, each="steps"), lambda name: True)]
        return sgd_visit(task.loss, self.local, phases=pieces, end=end)

    def sent(self, direction: Tree, own: Tree) -> tuple[Tree, Tree]:
        """Return (parts sent, the worker's next state)."""
        return {"delta": direction}, own

    def arrivals(self, state: Tree, fed: Fed) -> tuple[Clock, Mapping[int, int], dict[int, Tree], Tensor]:
        """Return (the clock, who replies from which version, K_i of each of them as it is sent, all K_i after the round's starts)."""
        s = self.settings
        drawn = keys.numpy(fed.key("steps")).integers(s.least, s.most + 1, fed.population)
        at = Clock(state, fed, fed.durations(drawn))
        came = at.replies(self.buffer_size(fed))
        taken = state["steps"].clone()
        taken[at.begun] = torch.from_numpy(drawn)[at.begun]
        return at, came, {c: {"steps": taken[c]} for c in came}, taken
