"""Bounded norms: no update counts for more than a given length."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed.aggregate import Aggregator, AggregatorSettings

if TYPE_CHECKING:
    from torch import Tensor


class Settings(AggregatorSettings):
    """The bound."""

    norm: float = Field(gt=0, description="Largest Euclidean norm of an update, in the parameters' units.")


class NormBound(Aggregator):
    """Sun et al. 2019, "Can You Really Backdoor Federated Learning?" (1911.07963), section 4: norm thresholding.

    The method's own mean of u_i min(1, norm / ||u_i||). Running statistics are not scaled, and do not count for the norm.
    """

    Settings = Settings
    needs: ClassVar[tuple[str, ...]] = ("fold",)

    def scale(self, norms: Tensor) -> Tensor:
        return (self.settings.norm / norms.clamp(min=1e-30)).clamp(max=1.0)
