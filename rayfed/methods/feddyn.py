"""FedDyn: a regulariser that follows each client's own history, so that local minima meet in the global one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed import MethodSettings, sgd_visit, visit
from rayfed.methods._bases.dual import Dual

if TYPE_CHECKING:
    from rayfed import Task, Visit


class FedDyn(Dual):
    """Acar et al. 2021, "Federated Learning Based on Dynamic Regularization" (ICLR 2021, 2111.04263).

    Client i minimises F_i(y) - <g_i, y> + (alpha / 2) |y - x^r|^2; then g_i <- g_i - alpha (y_i - x^r), g_i = 0 at first.
    Server, uniform: h <- h - (alpha / N) sum_S (y_i - x^r); x^{r+1} = mean_S y_i - h / alpha.
    Written here with h_i = -g_i / alpha, the sum of i's updates: a step's gradient is g_i(y) + alpha (y - x^r + h_i), and
    x^{r+1} = x^r + mean_S u_i + mean over all N of h_i. Dividing alpha by a client's relative size, as the published code
    does, is left out. A round without replies changes nothing.
    Down: the model (P floats). Up: the update (P). Kept at client i: h_i (P). At the server: x, mean of h_i (2 P).
    """

    class Settings(MethodSettings):
        alpha: float = Field(0.1, gt=0, description="Strength of the regulariser; the paper's grid is 0.001 to 0.1.")

    @visit
    def train(self, task: Task) -> Visit:
        alpha = self.settings.alpha
        return sgd_visit(
            task.loss, self.local, start=self.start, hook=lambda g, carry: self.pull(g, carry, alpha), end=self.end
        )
