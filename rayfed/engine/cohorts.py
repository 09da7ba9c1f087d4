"""How the clients of an ask are cut into calls: how many go into one, which ones, and how many actors that can keep busy.

The size of cohorts follows from the config and the model's size alone, never from the number of actors, so that another
number of actors changes nothing but the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rayfed import tree
from rayfed.models import families

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.task import Task

Cohort = tuple[int, ...]  # clients of one call

USUAL = 32  # clients of one call, at most
SMALL_MODELS = 128  # the same where a model's work is less than a call's
SMALL_BYTES = (
    64 * 2**20
)  # of a call's models, gradients and optimizer state, up to which more than USUAL clients are taken
MOST_BYTES = 2 * 2**30  # of the same, at most
SCORING_CALLS = 64  # calls, at most, that the pieces of scored rows go out in
ONE_CALL_S = 4e-3  # seconds of a round's work: with less, a second call or the way to an actor costs more than it saves
CALLS_S = {
    "loop": 1e-4,
    "vmap": 2e-5,
    "compiled": 2e-5,
    "debug": 1e-3,
}  # seconds of a client's step of no arithmetic; a typical core's
OPERATIONS = 2e10  # of arithmetic in a second of the same core


def calls_per_round(clients: int, largest: int = USUAL) -> int:
    """Count the calls that a round of `clients` is cut into where one takes `largest`: even, so that two actors can share them."""
    calls = max(2, math.ceil(clients / largest))
    return calls + calls % 2


def cohort_size(config: Config, task: Task) -> int:
    """Return the clients of one call: `resources.cohort`, or for `auto` a function of config and shapes alone."""
    if config.resources.cohort != "auto":
        return int(config.resources.cohort)
    asked = max(1, config.per_round())
    each = max(
        1, 6 * tree.nbytes(_largest(task).params_like)
    )  # bytes: a model, its gradient, and four for the optimizer
    calls = calls_per_round(asked, min(SMALL_MODELS, max(USUAL, SMALL_BYTES // each)))
    fits = max(1, MOST_BYTES // each)
    return max(1, min(math.ceil(asked / calls), fits))


def _largest(task: Task) -> Task:
    """Return the task of the family with the largest model; itself where all clients have one."""
    return max(task.families.values(), key=lambda t: tree.nbytes(t.params_like)) if task.families else task


def client_steps(config: Config, federation: Federation) -> int:
    """Count the local steps of a client with as many examples as the mean."""
    mean = float(federation.class_counts[: federation.population].sum(1).mean())
    return config.local.steps or (config.local.epochs or 1) * math.ceil(mean / config.local.batch_size)


def estimate_step(config: Config, federation: Federation, task: Task) -> float:
    """Estimate the seconds of a client's local step from the model's shapes and the batch: the same on every machine.

    Six operations for each weight and example (two forward, four back); a convolution's weights are used at every pixel, a text
    model's for every token. Infinite for a pretrained model, most of whose weights are not trained.
    """
    if config.task.model.name.startswith("hf:"):
        return math.inf
    whole = math.prod(federation.input_shape) if federation.kind in ("text", "instruct") else 1
    pixels = math.prod(federation.input_shape[1:])
    uses = sum(p.numel() * (pixels if p.ndim > 2 else whole) for p in tree.values(_largest(task).params_like))
    return CALLS_S.get(config.resources.executor, CALLS_S["loop"]) + 6 * uses * config.local.batch_size / OPERATIONS


def may_begin_alone(config: Config) -> bool:
    """Return whether a run may begin in the server's process, before there are client actors, as far as its config says.

    The server's process has no limit on time and no GPU, and must survive what clients do, so that it executes no code of the
    user's own; who asks for a number of actors, or for visits in them, gets them first.
    """
    r, pretrained = config.resources, config.task.model.name.startswith("hf:")
    names = (config.method.name, config.task.kind.name, *(m.name for m in families.models(config.task.model).values()))
    own = any(".py:" in n for n in names)
    asked = r.actors != "auto" or r.visits == "actors" or config.failures.client_timeout_s is not None
    return not (asked or pretrained or own)


def fits_one_call(config: Config, federation: Federation, step: float) -> bool:
    """Return whether a round's clients are better asked in one call, where a client's local step takes `step` seconds."""
    asked = config.per_round()
    return asked <= SMALL_MODELS and asked * client_steps(config, federation) * step < ONE_CALL_S


def choose_calls(config: Config, federation: Federation, task: Task, step: float, in_server: bool) -> tuple[int, str]:
    """Choose the clients of one call, and where visits run, for a client's local step of `step` seconds.

    in_server: whether the server's process can execute visits. Returns (clients, "actors" or "server"); what `resources` sets
    itself stays.
    """
    asked, size, where = config.per_round(), cohort_size(config, task), config.resources.visits
    one_call = fits_one_call(config, federation, step)
    if one_call and config.resources.cohort == "auto":
        size = asked
    if where == "auto":
        # The server's process has no limit on time.
        here = one_call and size >= asked and in_server and config.failures.client_timeout_s is None
        where = "server" if here else "actors"
    return size, where


def useful_actors(config: Config) -> int:
    """Count the client actors that a round can keep busy; more would only wait. The model's size is not known yet."""
    asked, size = max(1, config.per_round()), config.resources.cohort
    return calls_per_round(asked) if size == "auto" else math.ceil(asked / int(size))


def cut_by_family(clients: Sequence[int], federation: Federation, size: int, task: Task) -> list[tuple[Cohort, int]]:
    """Cut clients into cohorts as `cut` does, those of each family (`Task.family`) by themselves: (cohort, number of the family)."""
    if task.family is None:
        return [(cohort, 0) for cohort in cut(clients, federation, size)]
    ids, found = np.fromiter(clients, np.int64, len(clients)), []
    for number in range(len(task.families)):
        found += [(cohort, number) for cohort in cut(ids[task.family[ids] == number].tolist(), federation, size)]
    return found


def cut(clients: Sequence[int], federation: Federation, size: int) -> list[Cohort]:
    """Cut clients into cohorts of `size` with similar work, whatever order they were named in: by train examples, then by id."""
    ids, offsets = np.fromiter(clients, np.int64, len(clients)), federation.train.offsets
    examples = offsets[ids + 1] - offsets[ids]
    return cut_in_order(ids[np.lexsort((ids, examples))].tolist(), size)


def cut_in_order(numbers: Sequence[int], size: int) -> list[Cohort]:
    """Cut numbers into cohorts of `size`, in the order given."""
    return [tuple(numbers[i : i + size]) for i in range(0, len(numbers), size)]
