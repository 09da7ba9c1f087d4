"""FedJAX on the same plan: `for_each_client` with its jitted backend, all batches padded to one shape so that nothing is compiled twice.

python fedjax_side.py PLAN OUT
"""

import sys

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from plan import Plan, Times

plan, times = Plan(sys.argv[1], "fedjax"), Times(sys.argv[2])
x, y = plan.x.reshape(len(plan.x), -1), plan.y.astype(np.int32)
test = {"x": x[plan.test], "y": y[plan.test]}
lr = plan.about["lr"]


def logits(p, x):
    hidden = jax.nn.relu(x @ p[0].T + p[1])
    return hidden @ p[2].T + p[3]


def loss(p, batch):
    of_each = -jnp.take_along_axis(jax.nn.log_softmax(logits(p, batch["x"])), batch["y"][:, None], 1)[:, 0]
    return jnp.where(batch["there"], of_each, 0.0).sum() / batch["there"].sum()


def client_init(shared, client):
    return shared


def client_step(p, batch):
    return jax.tree.map(lambda w, g: w - lr * g, p, jax.grad(loss)(p, batch))


def client_final(shared, p):
    return p


visits = fedjax.for_each_client(client_init, client_step, client_final)


def clients(r):
    """The plan's clients of a round: (id, batches, input)."""
    made = []
    for i, rows in enumerate(plan.rows[r]):
        batches = [{"x": x[b], "y": y[b], "there": b >= 0} for b in rows if (b >= 0).any()]
        made.append((b"%d" % i, batches, None))
    return made


def apply(p, r, who):
    """A round of federated averaging."""
    ends = ((end, float(plan.examples[r, int(i)])) for i, end in visits(p, who))
    return fedjax.tree_util.tree_mean(ends)


accuracy = jax.jit(lambda p: (logits(p, test["x"]).argmax(1) == test["y"]).mean())
weights, rounds = [jnp.asarray(w) for w in plan.start], [clients(r) for r in range(plan.rounds)]
jax.block_until_ready((apply(weights, 0, rounds[0][:2]), accuracy(weights)))  # compiled before the first round
for r, who in enumerate(rounds):
    times.begin()
    weights = jax.block_until_ready(apply(weights, r, who))
    times.end()
    times.score(plan, accuracy, weights)
times.write(plan, [np.asarray(w) for w in weights])
