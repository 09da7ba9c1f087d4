"""BlazeFL's simulation on the same plan: clients one after another, or in a pool of two threads; the global model scored where rayfed's
defaults do.

python blazefl_side.py PLAN OUT serial|threads
"""

import sys
import threading
from dataclasses import dataclass

import torch
import work
from blazefl.core import (
    BaseClientTrainer,
    BaseServerHandler,
    ThreadPoolClientTrainer,
    deserialize_model,
    serialize_model,
)
from plan import Plan, Times

torch.set_num_threads(1)
plan, times = Plan(sys.argv[1], "blazefl"), Times(sys.argv[2])


@dataclass
class Down:
    model: torch.Tensor
    round: int


@dataclass
class Up:
    model: torch.Tensor
    examples: float


class Server(BaseServerHandler[Up, Down]):
    """FedAvg over the plan's clients of a round."""

    def __init__(self):
        self.client, self.round, self.buffer = work.Client(plan), 0, []
        self.client.load(plan.start)

    def downlink_package(self):
        return Down(serialize_model(self.client.net), self.round)

    def sample_clients(self):
        return list(range(len(plan.clients[self.round])))  # places in the round

    def if_stop(self):
        return self.round >= plan.rounds

    def load(self, payload):
        self.buffer.append(payload)
        if len(self.buffer) < len(plan.clients[self.round]):
            return False
        self.global_update(self.buffer)
        self.round, self.buffer = self.round + 1, []
        return True

    def global_update(self, buffer):
        shares = torch.tensor([up.examples for up in buffer])
        stacked = torch.stack([up.model for up in buffer])
        deserialize_model(self.client.net, (shares / shares.sum()) @ stacked)


def train(client, payload, place):
    """One client's visit."""
    deserialize_model(client.net, payload.model)
    client.steps(payload.round, place)
    return Up(serialize_model(client.net), float(plan.examples[payload.round, place]))


class Serial(BaseClientTrainer[Up, Down]):
    def __init__(self):
        self.client, self.cache = work.Client(plan), []

    def local_process(self, payload, cid_list):
        self.cache = [train(self.client, payload, place) for place in cid_list]

    def uplink_package(self):
        return self.cache


class Threads(ThreadPoolClientTrainer[Up, Down]):
    def __init__(self):
        self.num_parallels, self.device, self.device_count = 2, "cpu", 0
        self.cache, self.stop_event, self.mine = [], threading.Event(), threading.local()
        self.free = [work.Client(plan) for _ in range(self.num_parallels)]

    def worker(self, cid, device, payload, stop_event):
        client = self.free.pop()  # as many models as threads
        try:
            return train(client, payload, cid)
        finally:
            self.free.append(client)

    def get_client_device(self, cid):
        return "cpu"

    def uplink_package(self):
        got, self.cache = self.cache, []
        return got


server, trainer = Server(), {"serial": Serial, "threads": Threads}[sys.argv[3]]()
while not server.if_stop():
    times.begin()
    trainer.local_process(server.downlink_package(), server.sample_clients())
    for up in trainer.uplink_package():
        server.load(up)
    times.end()
    times.score(plan, server.client.accuracy)
times.write(plan, [p.detach().numpy() for p in server.client.params])
