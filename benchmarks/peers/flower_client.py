"""The client side of flower_side.py; imported by Flower's actors."""

import os

import torch
import work
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from plan import Plan

PLAN = "PEERS_PLAN"  # environment: the plan's folder
app = ClientApp()
_known = []


def client():
    """Return this process's model and plan, read once."""
    if not _known:
        torch.set_num_threads(1)
        _known.append(work.Client(Plan(os.environ[PLAN])))
    return _known[0]


@app.query()
def ready(msg, context):
    """Import and read what later rounds need: asked before the first round, as rayfed's actors do it before theirs."""
    client()
    return Message(content=RecordDict(), reply_to=msg)


@app.train()
def train(msg, context):
    mine = client()
    r, i = int(msg.content["config"]["round"]), int(msg.content["config"]["place"])
    work.die_if_told(r + 1, i)
    names = mine.plan.names
    new = mine.visit([msg.content["arrays"][n].numpy() for n in names], r, i)
    arrays = ArrayRecord({n: Array(w) for n, w in zip(names, new, strict=True)})
    content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": float(mine.plan.examples[r, i])})}
    return Message(content=RecordDict(content), reply_to=msg)
