"""FoolsGold: clients whose updates have long been alike count less."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from rayfed.aggregate import Aggregator, AggregatorSettings, Evidence


class Settings(AggregatorSettings):
    """How sharply it judges clients whose sums of updates are alike."""

    kappa: float = Field(1.0, gt=0, description="Confidence: factor of the logit of a client's credit.")


class FoolsGold(Aggregator):
    """Fung, Yoon and Beschastnikh 2020, "The Limitations of Federated Learning in Sybil Settings" (1808.04866), algorithm 1.

    h_i: the sum of client i's updates over all rounds, which the server keeps (N P numbers at most). cs_ij = cos(h_i, h_j), v_i =
    max_j cs_ij; pardoning: cs_ij <- cs_ij v_i / v_j where v_j > v_i; a_i = 1 - max_j cs_ij, divided by the largest; a_i <- kappa
    (ln(a_i / (1 - a_i)) + 1/2), cut to [0, 1]. Result: sum_i a_i u_i / sum_i a_i. The published code adds a_i u_i without
    dividing, so that its step grows with the clients. It withstands many attackers of one aim, not one alone; honest clients with
    like data are taken for such.
    """

    Settings = Settings
    memory: ClassVar[bool] = True

    def weigh(self, seen: Evidence) -> np.ndarray:
        n, lengths = len(seen.gram), np.sqrt(np.maximum(seen.gram.diagonal(), 1e-300))
        alike = seen.gram / np.outer(lengths, lengths)
        np.fill_diagonal(alike, 0.0)
        most = alike.max(1)
        pardoned = np.where(
            most[None] > most[:, None], alike * most[:, None] / np.where(most == 0, 1.0, most)[None], alike
        )
        credit = np.clip(1 - pardoned.max(1), 0.0, 1.0)
        if not credit.any():
            return np.full(n, 1.0 / n)  # all are alike
        credit = np.minimum(credit / credit.max(), 0.99)
        with np.errstate(divide="ignore"):
            a = np.clip(self.settings.kappa * (np.log(credit / (1 - credit)) + 0.5), 0.0, 1.0)
        return a / a.sum()
