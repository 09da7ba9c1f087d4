"""Clipping: an update is scaled down to a norm, fixed or following a quantile of the clients' norms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import keys
from rayfed.config.schema import Need
from rayfed.lazy import torch
from rayfed.transform import At, Collected, Transform, TransformSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Clip(Transform):
    """McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models" (1710.06963), flat clipping:
    u_i <- u_i min(1, C / |u_i|), |.| over all update parts together.

    With `quantile` C follows the quantile g of the norms (Andrew et al. 2021, "Differentially Private Learning with Adaptive
    Clipping", 1905.03871, algorithm 1): clients send b_i = 1 where |u_i| <= C, and the server sets
    C <- C exp(-rate (b - g)), b = 1/2 + (sum (b_i - 1/2) + N(0, count_noise^2)) / m, m the clients of a round in expectation
    where updates get central noise, and those that replied otherwise.
    """

    class Settings(TransformSettings):
        needs: ClassVar = {name: (Need("quantile", (None,), but=True),) for name in ("rate", "count_noise")}

        norm: float = Field(gt=0, description="Largest norm C of an update; with `quantile` that of the first round.")
        quantile: float | None = Field(None, gt=0, lt=1, description="Share of updates that C leaves as they are.")
        rate: float = Field(0.2, gt=0, description="Step of C's logarithm in a round.")
        count_noise: float | None = Field(
            None,
            ge=0,
            description="Standard deviation of the noise on the count of b_i; default a 20th of a round's clients where updates get "
            "central noise, else 0.",
        )

    place = "clip"

    @property
    def adds(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.settings.quantile is None else ("below",)

    def server_init(self) -> Tree:
        return {"norm": torch.tensor(self.settings.norm, dtype=torch.float64)}

    def encode(self, v: Tensor, own: Tree, at: At) -> tuple[Tensor, Tree, Tree]:
        bound, norm = at.state["norm"].to(v.dtype), torch.linalg.vector_norm(v)
        beside = {} if self.settings.quantile is None else {"below": (norm <= bound).to(torch.float64)}
        return v * (bound / torch.maximum(norm, bound)), beside, {}

    def size(self, n: int, bits: int, pieces: object) -> tuple[int, int, int]:
        return n, bits, len(self.adds)

    def finish(self, got: Collected, state: Tree, key: int) -> tuple[dict[str, Any], Tree]:
        s = self.settings
        clients = got.clients if got.private else got.replies
        if s.quantile is None or not clients:
            return got.folded, state
        noise = got.count_noise * float(keys.numpy(key).normal()) if got.count_noise else 0.0
        below = 0.5 + (float(got.sums["below"]) - got.replies / 2 + noise) / clients
        return got.folded, {"norm": state["norm"] * math.exp(-s.rate * (below - s.quantile))}

    def count_noise(self, clients: float, private: bool) -> float:
        """Return the standard deviation of the noise on the count of b_i, 0 without one."""
        s = self.settings
        default = clients / 20 if private else 0.0
        return 0.0 if s.quantile is None else default if s.count_noise is None else s.count_noise

    def logs(self, state: Tree) -> dict[str, float]:
        return {"transforms/clip": float(state["norm"])}
