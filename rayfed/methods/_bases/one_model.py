"""What FedAvg and many others share: one model goes down, its change after local training comes up."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed import PARAMS, Method, Part, Wire, sgd_visit, visit

if TYPE_CHECKING:
    from rayfed import Task, Visit


class OneModel(Method):
    """Base: the server has one model (P); every client is sent it, trains it as the config says, and sends its change (P)."""

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)}, up={"delta": Part(PARAMS, update=True)}, server={"model": Part(PARAMS)}
    )

    @visit
    def train(self, task: Task) -> Visit:
        return sgd_visit(task.loss, self.local)
