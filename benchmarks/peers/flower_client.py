"""The client side of flower_side.py; imported by Flower's actors."""

import os

import torch
import work
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

PLAN = "PEERS_PLAN"  # environment: the plan's folder
app = ClientApp()
_known = []


@app.train()
def train(msg, context):
    if not _known:
        torch.set_num_threads(1)
        _known.append(work.Client(work.Plan(os.environ[PLAN])))
    (client,) = _known
    r, i = int(msg.content["config"]["round"]), int(msg.content["config"]["place"])
    work.die_if_told(r + 1, i)
    names = client.plan.names
    new = client.visit([msg.content["arrays"][n].numpy() for n in names], r, i)
    arrays = ArrayRecord({n: Array(w) for n, w in zip(names, new, strict=True)})
    content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": float(client.plan.examples[r, i])})}
    return Message(content=RecordDict(content), reply_to=msg)
