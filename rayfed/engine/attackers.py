"""Attacks on updates, where a client's reply has left its visit: what an attacker sends takes the place of what it worked out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayfed import attack, keys, tree
from rayfed.lazy import torch

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.method import Method
    from rayfed.task import Task
    from rayfed.tree import Tree


class Attackers:
    """The attacks of one run that act on updates. Running statistics and counters are sent as they are.

    parts: names of the parts that are attacked; colluding: number (in the config) of the attack whose clients agree on one update,
    None without one.
    """

    def __init__(self, config: Config, method: Method, task: Task):
        self.seed, self.attacks = config.seed, attack.of(config)
        self.parts = {n for n, p in method.wire.up.items() if p.update}
        self._left = task.buffers
        self._of = [set(attack.attackers(config, a).tolist()) for a in self.attacks]
        self.colluding = next((i for i, a in enumerate(self.attacks) if a.place == "craft"), None)

    @classmethod
    def of(cls, config: Config, method: Method, task: Task) -> Attackers | None:
        """Return the attacks on updates of a config; None without any."""
        return cls(config, method, task) if any(a.place != "data" for a in attack.of(config)) else None

    def key(self, number: int, client: int, part: str, dispatch: int) -> int:
        """Return the key of one attack of a config on a client's part in an ask."""
        when = 0 if self.attacks[number].lasting else dispatch
        return keys.key(self.seed, when, client, f"attack {number} on {part}")

    def colluders(self, clients: Collection[int]) -> list[int]:
        """Return those of some clients who agree on one update, sorted."""
        return [] if self.colluding is None else sorted(self._of[self.colluding] & set(clients))

    def attack(self, parts: Tree, clients: Sequence[int], dispatch: int, crafted: Tree) -> Tree:
        """Return what a piece's clients send, leaves (k, ...), in the place of `parts`.

        dispatch: of the ask; crafted: part -> the update that colluders have agreed on; without one they send their own.
        """
        changed: dict[str, Any] = {}
        for i, (made, theirs) in enumerate(zip(self.attacks, self._of, strict=True)):
            rows = [r for r, c in enumerate(clients) if c in theirs]
            if made.place == "data" or not rows:
                continue
            for name in sorted(self.parts & parts.keys()):
                if made.place == "craft" and name not in crafted:
                    continue
                now: Any = tree.without(changed[name] if name in changed else parts[name], self._left)
                device = next((x.device for x in tree.values(now)), None)
                for r in rows:
                    key = torch.tensor(self.key(i, clients[r], name, dispatch), device=device)
                    new = (
                        tree.without(crafted[name], self._left)
                        if made.place == "craft"
                        else made.change(tree.pick(now, r), key)
                    )
                    now = tree.map(
                        lambda x, y, r=r: x.index_copy(0, torch.tensor([r], device=x.device), y[None].to(x.dtype)),
                        now,
                        new,
                    )
                changed[name] = {**parts[name], **now} if isinstance(now, Mapping) else now
        return {**parts, **changed}
