"""The plain loop: one process, one thread, no engine.   python loop.py PLAN OUT"""

import sys

import torch
import work

torch.set_num_threads(1)
plan, stamps = work.Plan(sys.argv[1]), work.Stamps(sys.argv[2])
client, weights = work.Client(plan), plan.start
for r in range(plan.rounds):
    stamps.begin()
    total, new = float(plan.examples[r].sum()), None
    for i in range(len(plan.clients[r])):
        new = work.mean(new, client.visit(weights, r, i), plan.examples[r, i] / total)
    weights = new
    stamps.end()
stamps.write(plan, weights)
