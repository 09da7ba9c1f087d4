"""fluke's centralized federation on the same plan: one process, one thread, the global model scored where rayfed's defaults do.

python fluke_side.py PLAN OUT
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
import work
from fluke import FlukeENV
from fluke.algorithms import CentralizedFL
from fluke.client import Client
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from fluke.server import Server
from fluke.utils import FederationObserver
from plan import Plan, Times

torch.set_num_threads(1)
plan, times = Plan(sys.argv[1], "fluke"), Times(sys.argv[2])
shared = work.Client(plan)  # the plan's batches, and the model that is scored
shared.load(plan.start)
env = FlukeENV()
env.set_device("cpu")
env.set_inmemory(True)
env.set_eval_cfg(server=False, locals=False, pre_fit=False, post_fit=False)
now = {"round": 0, "place": {}}


class Planned(Client):
    """A client that takes the planned batches, with the optimizer that fluke keeps for it."""

    def fit(self, override_local_epochs=0):
        if self.optimizer is None:
            self.optimizer, self.scheduler = self._optimizer_cfg(self.model)
        for x, y in shared.batches(now["round"], now["place"][self.index]):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
        return 0.0


class Sampling(Server):
    def get_eligible_clients(self, eligible_perc):
        who = plan.clients[now["round"]]
        now["place"] = {int(c): i for i, c in enumerate(who)}
        return [self.clients[int(c)] for c in who]


class Watching(FederationObserver):
    def start_round(self, round, global_model):
        times.begin()

    def end_round(self, round):
        times.end()
        now["round"] += 1
        times.score(plan, shared.accuracy, current())


def current():
    return [p.detach().numpy() for p in server.model.parameters()]


held = np.ones(plan.about["clients"], int)  # examples of each client; of one that has no turn it does not matter
held[plan.clients] = plan.examples
sgd = OptimizerConfigurator({"name": "SGD", "lr": plan.about["lr"]}, {"name": "StepLR", "step_size": 1, "gamma": 1.0})


def rows(n):
    """As many rows as a client has: fluke weights by their number."""
    x, y = shared.x[:1].expand(n, *shared.x.shape[1:]), shared.y[:1].expand(n)
    return FastDataLoader(x, y, num_labels=plan.about["classes"])


clients = [Planned(i, rows(int(n)), None, sgd, torch.nn.CrossEntropyLoss(), local_epochs=1) for i, n in enumerate(held)]
model = work.MODELS[plan.about["model"]](plan.about)
model.load_state_dict(shared.net.state_dict())
server = Sampling(model=model, test_set=None, clients=clients, weighted=True)
federation = CentralizedFL(len(clients), None, {}, clients=clients, server=server)
federation.set_callbacks([Watching()])
federation.run(plan.rounds, len(plan.clients[0]) / len(clients))
times.write(plan, current())
