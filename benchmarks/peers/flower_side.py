"""Flower's simulation on the same plan, with what helps it: one model per actor, imported and read before the first round, plain arrays,
no clients' evaluation (the global model is scored where rayfed's defaults do, in the server's process), no dashboard.

python flower_side.py PLAN OUT
"""

import os
import sys
import time

import flower_client
import numpy as np
import torch
import work
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from plan import Plan, Times

os.environ[flower_client.PLAN] = sys.argv[1]
torch.set_num_threads(1)
plan, times = Plan(sys.argv[1], "flower"), Times(sys.argv[2])
scored = work.Client(plan)


class Planned(FedAvg):
    """Sends the plan's clients of a round to as many nodes; which node plays which client makes no difference."""

    def configure_train(self, server_round, arrays, config, grid):
        times.begin()
        places = range(len(plan.clients[server_round - 1]))
        return [
            Message(
                content=RecordDict({"arrays": arrays, "config": ConfigRecord({"round": server_round - 1, "place": i})}),
                message_type=MessageType.TRAIN,
                dst_node_id=node,
            )
            for i, node in zip(places, sorted(grid.get_node_ids()), strict=False)
        ]

    def aggregate_train(self, server_round, replies):
        out = super().aggregate_train(server_round, replies)
        times.end()
        return out


def evaluate(server_round, arrays):
    """Score the global model after the rounds after which rayfed does; not before the first."""
    if server_round:
        times.score(plan, scored.accuracy, [arrays[n].numpy() for n in plan.names])


server = ServerApp()


@server.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < plan.about["clients"]:
        time.sleep(0.05)
    asked = [Message(content=RecordDict(), message_type=MessageType.QUERY, dst_node_id=n) for n in nodes[:4]]
    grid.send_and_receive(asked)  # both actors have work at once
    first = ArrayRecord({n: Array(w) for n, w in zip(plan.names, plan.start, strict=True)})
    result = Planned(fraction_evaluate=0.0).start(grid, first, num_rounds=plan.rounds, evaluate_fn=evaluate)
    times.write(plan, [np.asarray(result.arrays[n].numpy()) for n in plan.names])


run_simulation(
    server_app=server,
    client_app=flower_client.app,
    num_supernodes=plan.about["clients"],
    backend_config={
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 2, "include_dashboard": False},
    },
)
