"""Flower's simulation on a plan in which kill.py may have an actor killed: who answers, and how good the model is, round by round.

python flower_kill.py PLAN OUT
"""

import json
import os
import sys
import time
from pathlib import Path

import flower_client
import work
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from plan import Plan

os.environ[flower_client.PLAN] = sys.argv[1]
plan, out = Plan(sys.argv[1]), Path(sys.argv[2])
scored = work.Client(plan)


def accuracy(arrays):
    """On the pooled test set."""
    return scored.accuracy([arrays[n].numpy() for n in plan.names])


class Counting(FedAvg):
    """FedAvg that sends each client of the plan to a node, and writes down how many answered."""

    def configure_train(self, server_round, arrays, config, grid):
        self.sent = arrays
        return [
            Message(
                content=RecordDict({"arrays": arrays, "config": ConfigRecord({"round": server_round - 1, "place": i})}),
                message_type=MessageType.TRAIN,
                dst_node_id=node,
            )
            for i, node in zip(range(len(plan.clients[0])), sorted(grid.get_node_ids()), strict=True)
        ]

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        answered = sum(r.has_content() for r in replies)
        line = {"round": server_round, "answered": answered, "accuracy": accuracy(arrays or self.sent)}
        with open(out / "rounds.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return arrays, metrics


server = ServerApp()


@server.main()
def main(grid, context):
    while len(list(grid.get_node_ids())) < plan.about["clients"]:
        time.sleep(0.05)
    first = ArrayRecord({n: Array(w) for n, w in zip(plan.names, plan.start, strict=True)})
    Counting(fraction_evaluate=0.0).start(grid, first, num_rounds=plan.rounds)


run_simulation(
    server_app=server,
    client_app=flower_client.app,
    num_supernodes=plan.about["clients"],
    backend_config={
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 2, "include_dashboard": False},
    },
)
