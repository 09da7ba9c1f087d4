"""Canaries of a privacy audit: each is in the run or not by the toss of a coin, and if it is, always sends one direction of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed import keys, tree
from rayfed.attack import Attack, AttackSettings
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Settings(AttackSettings):
    """How long what they send is."""

    norm: float = Field(1e3, gt=0, description="Norm of what a canary sends: beyond any clip, which then bounds it.")


class Canary(Attack):
    """Canaries as clients whose updates are random directions, as in Andrew et al. 2024, "One-shot Empirical Privacy Estimation for
    Federated Learning" (2302.03098), each in or out by a fair coin, as in Steinke et al. 2023, "Privacy Auditing with One (1) Training
    Run" (2305.08846).

    Canary i: g_i, uniform on the sphere, drawn once for the whole run; it sends norm g_i whenever it is asked if its coin says so, and
    zeros otherwise, which to a sum of updates is a client that is not there. `rayfed audit RUN` guesses the coins from the final model.
    """

    Settings = Settings
    lasting = True

    def change(self, update: Tree, key: Tensor) -> Tree:
        length = torch.where(is_in(key), self.settings.norm, 0.0)
        return tree.map(lambda g: (length * g).to(g.dtype), direction(update, key))


def is_in(key: Tensor) -> Tensor:
    """Return whether a canary takes part; key: as `change` is given it."""
    return keys.uniform(keys.fold(key, 1), ()) < 0.5


def direction(like: Tree, key: Tensor) -> Tree:
    """Return a canary's direction, a tree of norm 1 of the shapes and types of `like`."""
    sizes = [x.numel() for x in tree.values(like)]
    drawn = keys.normal(keys.fold(key, 2), (sum(sizes),), torch.float64)
    pieces = iter((drawn / torch.linalg.vector_norm(drawn)).split(sizes))
    return tree.map(lambda x: next(pieces).reshape(x.shape).to(x.dtype), like)
