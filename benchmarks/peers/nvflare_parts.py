"""NVFlare's side of the plan: the server's workflow and the clients' executor, imported by the simulator's processes."""

import numpy as np
import torch
import work
from nvflare.apis.executor import Executor
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.model_controller import ModelController
from plan import Plan, Times

_known = {}


def client(plan):
    """Return this process's model and plan, read once."""
    if plan not in _known:
        torch.set_num_threads(1)
        _known[plan] = work.Client(Plan(plan, "nvflare"))
    return _known[plan]


class Planned(ModelController):
    """FedAvg: one site for each of a round's clients, the plan's weighting."""

    def __init__(self, plan, out):
        super().__init__(persistor_id="", task_check_period=0.05)
        self.plan, self.out = plan, out

    def run(self):
        scored = client(self.plan)
        plan, times = scored.plan, Times(self.out)
        weights = dict(zip(plan.names, plan.start, strict=True))
        self.send_model_and_wait(task_name="ready", data=FLModel(params={}, params_type=ParamsType.FULL))
        for r in range(plan.rounds):
            times.begin()
            sent = FLModel(params=weights, params_type=ParamsType.FULL, current_round=r, total_rounds=plan.rounds)
            replies = self.send_model_and_wait(task_name="train", data=sent)
            total = sum(reply.meta["examples"] for reply in replies)
            weights = {n: sum(np.float32(q.meta["examples"] / total) * q.params[n] for q in replies) for n in weights}
            times.end()
            times.score(plan, scored.accuracy, list(weights.values()))
        times.write(plan, list(weights.values()))


class Site(Executor):
    def __init__(self, plan):
        super().__init__()
        self.plan = plan

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        mine = client(self.plan)
        if task_name == "ready":
            return FLModelUtils.to_shareable(FLModel(params={}, params_type=ParamsType.FULL))
        got = FLModelUtils.from_shareable(shareable)
        r, place = got.current_round, int(fl_ctx.get_identity_name().rpartition("-")[2]) - 1
        new = mine.visit([got.params[n] for n in mine.plan.names], r, place)
        params = {n: w.copy() for n, w in zip(mine.plan.names, new, strict=True)}
        meta = {"examples": float(mine.plan.examples[r, place])}
        return FLModelUtils.to_shareable(FLModel(params=params, params_type=ParamsType.FULL, meta=meta))
