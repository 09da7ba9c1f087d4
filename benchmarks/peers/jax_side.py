"""A round written by hand in JAX on the same plan: jit(vmap(scan)), clients with fewer batches masked.   python jax_side.py PLAN OUT

One process, XLA's own threads. What is compiled is compiled before the first round, as rayfed times its executors before its first.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from plan import Plan, Times

plan, times = Plan(sys.argv[1], "jax"), Times(sys.argv[2])
x, y = jnp.asarray(plan.x.reshape(len(plan.x), -1)), jnp.asarray(plan.y, jnp.int32)
test_x, test_y = x[plan.test], y[plan.test]
batches = jnp.asarray(plan.rows, jnp.int32)  # (R, m, T, B), -1 where there is none
shares = jnp.asarray(plan.examples / plan.examples.sum(1, keepdims=True), jnp.float32)  # (R, m)
lr = plan.about["lr"]


def logits(p, rows):
    hidden = jax.nn.relu(rows @ p[0].T + p[1])
    return hidden @ p[2].T + p[3]


def loss(p, rows):
    there = rows >= 0
    of_each = -jnp.take_along_axis(jax.nn.log_softmax(logits(p, x[rows])), y[rows][:, None], 1)[:, 0]
    return jnp.where(there, of_each, 0.0).sum() / jnp.maximum(there.sum(), 1)


def step(p, rows):
    """One batch; without rows the loss is 0 and so is its gradient."""
    return jax.tree.map(lambda w, g: w - lr * g, p, jax.grad(loss)(p, rows)), None


@jax.jit
def round_of(p, batches, shares, r):
    """The weights after round r."""
    ends = jax.vmap(lambda mine: jax.lax.scan(step, p, mine)[0])(batches[r])
    return jax.tree.map(lambda w: jnp.tensordot(shares[r], w, 1), ends)


@jax.jit
def accuracy(p):
    return (logits(p, test_x).argmax(1) == test_y).mean()


weights = [jnp.asarray(w) for w in plan.start]
jax.block_until_ready((round_of(weights, batches, shares, 0), accuracy(weights)))  # compiled before the first round
for r in range(plan.rounds):
    times.begin()
    weights = jax.block_until_ready(round_of(weights, batches, shares, r))
    times.end()
    times.score(plan, accuracy, weights)
times.write(plan, [np.asarray(w) for w in weights])
