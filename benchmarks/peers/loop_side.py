"""The plain loop: one process, one thread, no engine.   python loop_side.py PLAN OUT

It keeps its weights after the rounds at which slower sides stop, too: theirs are compared with these.
"""

import sys

import torch
import work
from plan import Plan, Times, keep

torch.set_num_threads(1)
plan, times = Plan(sys.argv[1]), Times(sys.argv[2])
client, weights = work.Client(plan), plan.start
for r in range(plan.rounds):
    times.begin()
    total, new = float(plan.examples[r].sum()), None
    for i in range(len(plan.clients[r])):
        new = work.mean(new, client.visit(weights, r, i), float(plan.examples[r, i]) / total)
    weights = new
    times.end()
    times.score(plan, client.accuracy, weights)
    if r + 1 in plan.fewer.values():
        keep(times.where / f"end-{r + 1}.npz", plan, weights)
times.write(plan, weights)
