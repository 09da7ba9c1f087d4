"""Matrix factorisation: the score of an item is a user's vector times the item's, and a bias."""

from __future__ import annotations

from torch import Tensor, nn

SPREAD = 0.1  # deviation of the items' first vectors


class Factors(nn.Module):
    """Score items (B, K) as (B, K): w v_i + b. `user` (w, b) is the part that belongs to one user, `items` the table of all."""

    def __init__(self, items: int, dim: int):
        super().__init__()
        self.items = nn.Embedding(items, dim)
        nn.init.normal_(self.items.weight, std=SPREAD)
        self.user = nn.Linear(dim, 1)

    def forward(self, items: Tensor) -> Tensor:
        return self.user(self.items(items)).squeeze(-1)


def build(classes: int, input_shape: tuple[int, ...], dim: int) -> nn.Module:
    return Factors(classes, dim)
