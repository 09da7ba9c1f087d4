"""Gaussian noise on clipped updates: once on their sum, or by each client on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import keys, privacy, tree
from rayfed.config.schema import Need
from rayfed.lazy import torch
from rayfed.privacy import correlated
from rayfed.transform import At, Collected, Transform, TransformSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Gaussian(Transform):
    """DP-FedAvg: McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models" (1710.06963), with its fixed
    denominator f_f: of updates with norm at most C, each client in a round with probability q by itself,
        Delta = (sum_i u_i + N(0, z^2 C^2 I)) / (q N),  z the noise multiplier, N the clients that can take part.
    All weigh the same. One client more or less in the population changes the sum by at most C: that is what epsilon is about.
    Where the clip follows a quantile, z is raised so that the noise on its count is within the same epsilon (1905.03871, theorem 1).

    `where: local`: each client adds N(0, z^2 C^2 I) to its update itself, and epsilon is about one client's update replaced by any
    other, a change of at most 2 C, over as many releases as there were rounds; that clients are drawn counts for nothing.

    `bands` b > 1 is DP-FTRL's form, for clients that come in a fixed cycle in place of being drawn (Kairouz et al. 2021, "Practical and
    Private (Deep) Learning without Sampling or Shuffling", 2103.00039; here with banded matrices in place of its tree): release t
    gets (z C / m) (Z_t - Z_{t-1} / 2 - Z_{t-2} / 8 - ...), b terms, m the clients of a round. In the model, the sum of all releases,
    most of it cancels. Epsilon is about one client's updates or zeros in their place, and takes into account that it comes again
    after N / m rounds (`rayfed.privacy.correlated`).
    """

    class Settings(TransformSettings):
        needs: ClassVar = {
            **{name: (Need("accountant", ("none",), but=True),) for name in ("epsilon", "delta")},
            "bands": (Need("where", ("central",)),),
        }

        noise_multiplier: float = Field(ge=0.01, description="Standard deviation of the noise over the clip's norm.")
        where: Literal["central", "local"] = Field(
            "central",
            description="Added to the sum at the server, which is trusted, or by each client to its own update.",
        )
        bands: int = Field(
            1,
            ge=1,
            description="Releases that a draw of noise is in: 1 is noise of its own for each; more is DP-FTRL's form.",
        )
        delta: float = Field(1e-5, gt=0, lt=1, description="Delta of (epsilon, delta) differential privacy.")
        epsilon: float | None = Field(None, gt=0, description="Budget: a run that would spend more is refused.")
        accountant: Literal["auto", "exact", "prv", "pld", "none"] = Field(
            "auto",
            description="What computes epsilon: exact, the closed form without sampling; prv, package prv-accountant (extra `privacy`); "
            "pld, package dp-accounting; auto: exact where it applies, else the first that is installed; none: noise without an epsilon.",
        )

    place = "gaussian"

    @property
    def central(self) -> bool:
        """Return whether the server adds the noise."""
        return self.settings.where == "central"

    def q(self) -> float:
        """Return the probability that a client takes part in a release; 1 where sampling counts for nothing."""
        assert self.config is not None
        if not self.central or self.settings.bands > 1:
            return 1.0
        return min(1.0, self.config.per_round() / max(1, self.config.training_clients()))

    def sensitivity(self, releases: int) -> float:
        """Return how far a client moves what so many releases are made of, with `bands`, over the clip's norm."""
        assert self.config is not None
        apart = max(1, self.config.training_clients() // self.config.per_round())
        return correlated.sensitivity(self.settings.bands, releases, apart)

    def server_init(self) -> Tree:
        """Return the keys of the last releases' noise, (bands - 1,), the newest first, 0 where there is none yet."""
        bands = self.settings.bands
        return {"drawn": torch.zeros(bands - 1, dtype=torch.int64)} if bands > 1 else {}

    def accountant(self) -> str | None:
        """Return the accountant's name; None where none is asked for."""
        found = privacy.choose(self.settings.accountant, self.q())
        return None if found == "none" else found

    def epsilon(self, releases: int) -> float:
        """Return what so many releases have spent."""
        s, kind = self.settings, self.accountant()
        assert kind is not None
        if s.bands > 1 and releases:
            return privacy.epsilon(kind, 1.0, s.noise_multiplier / self.sensitivity(releases), 1, s.delta)
        return privacy.epsilon(kind, self.q(), s.noise_multiplier / (1 if self.central else 2), releases, s.delta)

    def noise_for(self, releases: int) -> float:
        """Return the noise multiplier with which so many releases stay within the budget."""
        s, kind = self.settings, self.accountant()
        assert kind is not None
        if s.bands > 1:
            needed = privacy.noise_for(kind, 1.0, 1, s.delta, s.epsilon) * self.sensitivity(releases)
            return float(f"{1.005 * needed:.3g}")  # rounded up
        return privacy.noise_for(kind, self.q(), releases, s.delta, s.epsilon) * (1 if self.central else 2)

    def encode(self, v: Tensor, own: Tree, at: At) -> tuple[Tensor, Tree, Tree]:
        if self.central:
            return v, {}, {}
        bound = at.state["bound"].to(v.dtype)
        return v + self.settings.noise_multiplier * bound * keys.normal(at.key, v.shape, v.dtype), {}, {}

    def finish(self, got: Collected, state: Tree, key: int) -> tuple[dict[str, Any], Tree]:
        if not self.central:
            return got.folded, state
        assert got.bound is not None
        multiplier = self.settings.noise_multiplier
        if 2 * got.count_noise > multiplier:
            multiplier = (multiplier**-2 - (2 * got.count_noise) ** -2) ** -0.5
        drawn = [key, *state["drawn"].tolist()] if self.settings.bands > 1 else [key]
        noised = {}
        for number, (part, folded) in enumerate(got.folded.items()):
            deviation = multiplier * got.bound / got.divisors[part]
            for weight, k in zip(correlated.weights(len(drawn)), drawn, strict=True):
                if k:
                    folded = _with_noise(folded, weight * deviation, keys.fold(torch.tensor(k), number + 1))
            noised[part] = folded
        return noised, {"drawn": torch.tensor(drawn[:-1])} if self.settings.bands > 1 else state


def _with_noise(t: Any, deviation: float, key: Tensor) -> Any:
    """Add Gaussian noise to every floating leaf of a tree: one draw for all of them, in their order."""
    sizes = [x.numel() if x.is_floating_point() else 0 for x in tree.values(t)]
    dtype = next((x.dtype for x in tree.values(t) if x.is_floating_point()), torch.float32)
    drawn = iter((deviation * keys.normal(key, (sum(sizes),), dtype)).split(sizes))

    def leaf(x: Tensor) -> Tensor:
        noise = next(drawn)
        return x + noise.reshape(x.shape).to(x.dtype) if x.is_floating_point() else x

    return tree.map(leaf, t)
