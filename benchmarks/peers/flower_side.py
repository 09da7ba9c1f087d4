"""Flower's simulation on the same plan, with what helps it: one model per actor, plain arrays, no evaluation, no dashboard.

python flower_side.py PLAN OUT
"""

import os
import sys
import time

import flower_client
import numpy as np
import work
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

os.environ[flower_client.PLAN] = sys.argv[1]
plan, stamps = work.Plan(sys.argv[1]), work.Stamps(sys.argv[2])


class Planned(FedAvg):
    """Sends the plan's clients of a round to as many nodes; which node plays which client makes no difference."""

    def configure_train(self, server_round, arrays, config, grid):
        stamps.begin()
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
        stamps.end()
        return out


server = ServerApp()


@server.main()
def main(grid, context):
    while len(list(grid.get_node_ids())) < plan.about["clients"]:
        time.sleep(0.05)
    first = ArrayRecord({n: Array(w) for n, w in zip(plan.names, plan.start, strict=True)})
    result = Planned(fraction_evaluate=0.0).start(grid, first, num_rounds=plan.rounds)
    last = result.arrays
    stamps.write(plan, [np.asarray(last[n].numpy()) for n in plan.names])


run_simulation(
    server_app=server,
    client_app=flower_client.app,
    num_supernodes=plan.about["clients"],
    backend_config={
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 2, "include_dashboard": False},
    },
)
