"""Your method: what one client does, and what the server does with the replies. This one is FedAvg with a step of its own."""

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Wire, mean, sgd_visit, tree, visit


class Mine(Method):
    """w <- w + server_lr * sum_i (n_i / n) u_i, where u_i is what client i's local steps changed.

    Down: w. Up: u_i. Kept at clients: nothing.
    """

    class Settings(MethodSettings):
        server_lr: float = Field(1.0, gt=0, description="Step of the server along the mean update; 1 is FedAvg.")

    wire = Wire(down={"model": Part(PARAMS)}, up={"delta": Part(PARAMS, update=True)}, server={"model": Part(PARAMS)})

    @visit
    def train(self, task):
        return sgd_visit(task.loss, self.local)

    def round(self, state, fed, task):
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight="examples"))
        return {"model": tree.add(state["model"], got.folded["delta"], self.settings.server_lr)}
