"""Mix images and their labels in pairs."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from rayfed import keys
from rayfed.augment import PURPOSE, Augmentation, AugmentSettings
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 4096  # values that a share can take


class Mixup(Augmentation):
    """Train on lambda x_i + (1 - lambda) x_j with the loss lambda l(y_i) + (1 - lambda) l(y_j), lambda ~ Beta(alpha, alpha) for each
    batch (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", 1710.09412).

    j is i moved on by one number for the whole batch, among its real rows. Lambda is one of 4,096 equally probable quantiles of the
    distribution, since drawing from it exactly takes a number of draws that depends on values.
    """

    class Settings(AugmentSettings):
        alpha: float = Field(
            0.2, gt=0, description="Concentration: small leaves most images nearly as they are, 1 is uniform."
        )

    mixes = True

    @cached_property
    def _shares(self) -> np.ndarray:
        from scipy.stats import beta

        found: np.ndarray = beta.ppf((np.arange(STEPS) + 0.5) / STEPS, self.settings.alpha, self.settings.alpha)
        return found

    def pairs(self, key: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        u = keys.uniform(keys.fold(keys.fold(key, PURPOSE), -1), (2,), torch.float32)
        n, rows = w.sum().long(), torch.arange(len(w), device=w.device)
        ahead = 1 + (u[0] * (n - 1)).long().clamp(min=0)
        partner = torch.where(rows < n, (rows + ahead) % n.clamp(min=1), rows)
        shares = torch.as_tensor(self._shares, dtype=w.dtype, device=w.device)
        return partner, shares.gather(0, (u[1:] * STEPS).long())[0]
