"""FedLD's server rule: each update projected on the principal directions of all of them, tensor by tensor."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed.aggregate import Aggregator, AggregatorSettings, Evidence


class Settings(AggregatorSettings):
    """The directions."""

    kappa: float = Field(0.8, gt=0, le=1, description="Share of the m directions that is kept, int(m kappa).")
    signs: Literal["own", "majority"] = Field(
        "own",
        description="Along a direction a client goes as its update does (published code), or as most updates do (ours).",
    )
    first: int = Field(2, ge=1, description="First round that it rules; before, the plain mean.")


class Principal(Aggregator):
    """Zeng et al. 2024, "Tackling Data Heterogeneity in Federated Learning via Loss Decomposition" (FedLD; 2408.12300), server.

    Of one tensor: rows g_i of m updates; G G^T / m has eigenvalues s_1 >= s_2 ... and vectors e_j; w_j = G^T e_j, of unit length
    wh_j. g_i' = ||g_i|| sum_{j <= int(m kappa)} (s_j / sum s) sign(<g_i, w_j>) wh_j; the result is the plain mean of g_i': n_i has
    no effect. Where no direction is kept (one client, kappa < 1) it is the plain mean of g_i; of a tensor of one entry, too.
    The published code turns w_j to where most updates go, which changes nothing there, for each client then takes its own sign:
    `signs: majority` is the rule in which it would.
    """

    Settings = Settings
    by_tensor: ClassVar[bool] = True

    def weigh(self, seen: Evidence) -> np.ndarray:
        s, gram, m = self.settings, seen.gram, len(seen.gram)
        kept = int(m * s.kappa + 1e-9)
        values, vectors = np.linalg.eigh((gram + gram.T) / 2)
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        if seen.round < s.first or not kept or not values[0]:
            return np.full(m, 1.0 / m)
        out, lengths = np.zeros(m), np.sqrt(np.maximum(gram.diagonal(), 0.0))
        for value, e in list(zip(values, vectors.T, strict=True))[:kept]:
            if value <= values[0] * 1e-12:
                break
            along = np.sign(e)  # <g_i, w_j> is the eigenvalue times e_i
            if s.signs == "majority":
                along = np.full(m, 1.0 if (e >= 0).sum() * 2 >= m else -1.0)
            out += (lengths @ along) / m * value / values.sum() * e / np.sqrt(value)
        return out
