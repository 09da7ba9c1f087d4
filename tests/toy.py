"""A federation small enough for every test: fourteen clients, 212 parameters, a fraction of a second per round.

`simulate` runs a method by hand, round by round, on a pool of choice; `run_folder` runs it as the engine does, with a
folder on disk; `SimPool` is a cluster in miniature: several workers, answers in any order, calls lost and repeated.
"""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rayfed import keys, partition, tree
from rayfed.config.load import merge
from rayfed.config.schema import Config
from rayfed.engine.client_states import ClientStates
from rayfed.engine.dispatch import Dispatch
from rayfed.engine.evaluation import Evaluator
from rayfed.engine.messages import Job
from rayfed.engine.pool import LocalPool, Outcome
from rayfed.engine.resident import Resident
from rayfed.engine.runner import Ending, Runner
from rayfed.engine.worker import Worker
from rayfed.errors import ConfigError
from rayfed.fed import Fed
from rayfed.launch.preflight import load_request
from rayfed.partition import Federation
from rayfed.storage.behind import Behind
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.tree_files import load_tree

torch.set_num_threads(1)  # tiny products: more threads only wait for each other

TOY: dict[str, Any] = {
    "name": "toy",
    "seed": 1,
    "rounds": 2,
    "task": {
        "data": {"name": "synthetic:blobs", "examples": 320, "classes": 4, "features": 8, "test": 60},
        "model": {"name": "mlp", "hidden": [16]},
    },
    # 12 clients take part and 2 are held out; they hold 4 to 37 training examples, against batches of 8
    "federation": {
        "clients": 14,
        "per_round": 7,
        "partition": {"kind": "dirichlet", "alpha": 0.5},
        "groups": {"kind": "label_permutation", "count": 3},
        "holdout": {"kind": "clients", "fraction": 0.15},
    },
    "local": {"epochs": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}},
    "evaluate": {"every": 1},
    "resources": {"executor": "loop", "cohort": 2},
    "storage": {"snapshot_every": 1},
    "track": [],
}

Spec = str | Mapping[str, Any]  # a method's name, or its name with settings

TASTES: dict[str, Any] = {  # changes to it: who took which item, one user a client
    "task": {"data": {"name": "synthetic:tastes", "users": 20, "items": 60, "each": 8}, "model": {"name": "factors", "dim": 4},
             "kind": {"name": "ranking", "negatives": 20}},
    "federation": {"partition": {"kind": "natural"}, "groups": {"kind": "none"}},
}  # fmt: skip

FRONTS: dict[str, Any] = {  # and: problems of two objectives, one a client
    "task": {"data": {"name": "pareto:f", "preferences": 4}, "model": {"name": "psl", "hidden": 6}},
    "federation": {"clients": 6, "per_round": 3, "partition": {"kind": "natural"}, "groups": {"kind": "none"}},
    "local": {"epochs": None, "steps": 1, "batch_size": 4},
}

PAIRS: dict[str, Any] = {  # and: questions and their passages, a topic for each client
    "task": {
        "data": {"name": "synthetic:pairs", "topics": 6, "examples": 240, "test": 60, "words": 12, "length": 4},
        "model": {"name": "bag", "words": 256, "dim": 6},
    },
    "federation": {"clients": 6, "per_round": 3, "partition": {"kind": "natural"}, "groups": {"kind": "none"}},
}

TOWERS: dict[str, Any] = {  # and: pictures whose classes are known by name, two of which no client has
    "task": {
        "data": {"name": "synthetic:shapes", "classes": 8, "examples": 64, "test": 16, "size": 8},
        "model": {"name": "two_tower"},
    },
    "adapter": {"kind": "prompts", "text": 2, "image": 1},
    "federation": {
        "clients": 5,
        "per_round": 2,
        "partition": {"kind": "iid"},
        "groups": {"kind": "none"},
        "new_classes": 2,
    },
    "local": {"epochs": None, "steps": 1, "batch_size": 4},
}

MODAL: dict[str, Any] = {  # and: rows of a picture, a text and measurements, of which some lack one or two
    "task": {
        "data": {
            "name": "modalities:constructed",
            "examples": 120,
            "test": 30,
            "classes": 3,
            "size": 3,
            "words": 12,
            "length": 4,
            "features": 3,
        },
        "model": {"name": "modalities", "dim": 4, "hidden": 6, "absent": "refined"},
    },
    "federation": {
        "clients": 6,
        "per_round": 4,
        "partition": {"kind": "iid"},
        "groups": {"kind": "none"},
        "modalities": {"absent": 0.4},
    },
}

VIEWS: dict[str, Any] = {  # and: small pictures whose labels only judge
    "task": {
        "data": {"name": "synthetic:images", "examples": 80, "classes": 3, "size": 4, "test": 30},
        "model": {"name": "mlp", "hidden": [8]},
        "kind": {"name": "ssl", "crops": 1, "parts": [2]},
    },
    "federation": {"clients": 5, "per_round": 2, "groups": {"kind": "none"}, "split": {"tests": "all"}},
    "local": {"epochs": None, "steps": 2, "batch_size": 8},
}


def config(method: Spec = "fedavg", *, executor: str = "loop", dtype: str = "float32", **changes: Any) -> Config:
    """The toy's config; `changes` are merged key by key, as the arms of a study are."""
    raw = merge(merge(TOY, {"task": {"dtype": dtype}, "resources": {"executor": executor}}), changes)
    made = load_request({**raw, "method": {"name": method} if isinstance(method, str) else dict(method)})
    assert isinstance(made, Config)
    return made


_federations: dict[str, Federation] = {}


def federation(c: Config) -> Federation:
    """The config's federation, read-only; the same object for the same split."""
    d = c.to_dict()
    task = d["task"]["data"], d["task"]["kind"]
    split = json.dumps([d["seed"], task, d["federation"], d["attacks"], d["evaluate"].get("retained")], sort_keys=True)
    if split not in _federations:
        made = partition.build(c)
        for a in (
            *made.arrays.values(),
            made.class_counts,
            made.group,
            made.pooled_test,
            made.train.rows,
            made.test.rows,
        ):
            a.flags.writeable = False
        _federations[split] = made
    return _federations[split]


# -- by hand -----------------------------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """One call of `fed.sample(n, where=where)` in a round, and what it gave."""

    round: int
    n: int | None
    where: tuple[int, ...] | None
    ids: tuple[int, ...]


class ToyDispatch(Dispatch):
    """With `order` set, takes the clients of every ask in a shuffled order."""

    order: int | None = None

    def ask(self, visit: Any, clients: Sequence[int], **more: Any) -> Any:
        if self.order is not None:
            clients = np.random.default_rng([self.order, len(clients)]).permutation(clients).tolist()
        return super().ask(visit, clients, **more)


class ToyFed(Fed):
    """Writes down what was sampled, and shows what the engine knows of the round."""

    def __init__(self, c: Config, split: Federation, method: Any, task: Any, pool: Any, run: str):
        self.drawn: list[Draw] = []
        self.pool = pool
        self.dispatch = ToyDispatch(c, split, method, task, pool, run)
        super().__init__(c, split, method, task, self.dispatch)

    @property
    def states(self) -> ClientStates:
        return self.dispatch.states

    @property
    def meter(self) -> dict[str, int]:
        """What the round has counted so far."""
        return {**self.dispatch.meter.row(), "visits": self.dispatch.visits, "dropped": self.dispatch.dropped}

    @property
    def local_scores(self) -> dict[int, dict[str, float]]:
        return self.dispatch.local_scores

    def sample(self, n: int | None = None, *, where: Sequence[int] | None = None) -> tuple[int, ...]:
        ids = super().sample(n, where=where)
        self.drawn.append(Draw(self.round, n, None if where is None else tuple(where), ids))
        return ids


class Result(NamedTuple):
    """After the last round: server state (tensors), the federation as the server saw it, one row per round."""

    state: tree.Tree
    fed: ToyFed
    rows: list[dict[str, float]]

    @property
    def initial(self) -> tree.Tree:
        """The server state before round 1."""
        return self.fed.method.init(self.fed.task, keys.key(self.fed.config.seed, 0, -1, "init"))

    def scores(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """What the engine would measure now: NAME/SCOPE, and one row per client (without seconds)."""
        dispatch = self.fed.dispatch
        evaluator = Evaluator(self.fed, dispatch)
        row, clients = evaluator.evaluate(self.state, dispatch.local_scores, dispatch.seconds)
        return row, [{k: v for k, v in c.items() if k != "seconds"} for c in clients]

    def clients(self) -> dict[str, tree.Tree]:
        """Client states by client id, tensors."""
        return states(self.fed.states)

    def initial_clients(self) -> dict[str, tree.Tree]:
        """What `own_init` gave those clients that have a state now."""
        m, seed = self.fed.method, self.fed.config.seed
        task = self.fed.task
        return {
            c: m.own_init(task.of_client(int(c)), int(c), keys.key(seed, 0, int(c), "own state"))
            for c in self.clients()
        }


def states(store: ClientStates) -> dict[str, tree.Tree]:
    """All committed client states as tensors, by client id."""
    return {str(c): tree.map(torch.clone, tree.from_numpy(store.get(c))) for c in sorted(store.places)}


def simulate(
    method: Spec = "fedavg",
    *,
    executor: str = "loop",
    dtype: str = "float32",
    rounds: int = 2,
    until: int | None = None,
    pool: Any = None,
    order: int | None = None,
    score: bool = False,
    kind: type[ToyFed] = ToyFed,
    **changes: Any,
) -> Result:
    """Run a method by hand, up to round `until` of `rounds`. `order`: seed of a shuffle of the clients in every ask; `score`:
    evaluate every round, as the engine does; kind: another class of federation; `changes`: to the config."""
    c = config(method, executor=executor, dtype=dtype, rounds=rounds, **changes)
    fed = make_fed(c, pool, kind)
    fed.dispatch.order = order
    done = Result(fed.method.init(fed.task, keys.key(c.seed, 0, -1, "init")), fed, [])
    for r in range(1, (until or rounds) + 1):
        fed.begin(r, score)
        done = done._replace(state=fed.method.round(done.state, fed, fed.task))
        done.rows.append({**{n: t / w for n, (t, w) in fed.logged.items()}, **fed.meter})
        if score:
            done.scores()
        fed.dispatch.commit()
    return done


def check_model(resident: Resident) -> None:
    """Refuse a model that the method cannot train, as is done before anything starts."""
    for task in resident.task.families.values() or [resident.task]:
        if found := resident.method.fits_model(task):
            raise ConfigError(found)


def make_fed(c: Config, pool: Any = None, kind: type[ToyFed] = ToyFed) -> ToyFed:
    """A federation at round 0 on a pool (default: one worker in this process), everything set up."""
    split, pool = federation(c), pool or LocalPool()
    resident = Resident(c, split, None, "cpu")
    pool.setup("toy", c, split, None)
    check_model(resident)
    return kind(c, split, resident.method, resident.task, pool, "toy")


# -- as the engine does ------------------------------------------------------------------------------------------------


class Ran(NamedTuple):
    """A run in its folder: how it ended, rows and client rows without what the clock decides, states on disk."""

    ending: Ending
    folder: RunFolder
    rows: list[dict[str, Any]]
    client_rows: list[dict[str, Any]]
    state: tree.Tree
    clients: dict[str, tree.Tree]


VOLATILE = ("time/", "clients/per_second", "ray/", "actors/")


def run_folder(
    method: Spec,
    where: Path,
    *,
    executor: str = "loop",
    dtype: str = "float32",
    rounds: int = 2,
    pool: Any = None,
    stop_after: int | None = None,
    resume: bool = False,
    committed: Callable[[int], None] = lambda round: None,
    lasting: Callable[[int], None] = lambda round: None,
    behind: Behind | None = None,
    **changes: Any,
) -> Ran:
    """Run a method through the engine in a folder under `where`, or continue (`resume`) the one that is there.

    committed: is called with the number of each round that has been committed; lasting: then, and at the end, with the newest round
    whose snapshot lasts; behind: does what is done behind the rounds, by default in a thread.
    """
    c = config(method, executor=executor, dtype=dtype, rounds=rounds, **changes)
    if resume:
        (path,) = [p for p in where.iterdir() if not p.name.startswith(".")]
        folder = RunFolder.open(path, owner=Owner.me())
    else:
        folder = RunFolder.create(where, c.to_dict(), owner=Owner.me())

    folder.behind = behind or folder.behind

    def watch(status: dict[str, Any]) -> None:
        committed(status["round"])
        lasting(folder.snapshotted)
        if status["round"] == stop_after:
            runner.stop()

    runner = Runner(c, federation(c), pool or LocalPool(), folder, progress=watch)
    ending = runner.execute()
    snapshot = folder.path / "snapshots" / f"round-{ending.round:06d}"
    store = ClientStates(LocalPool())
    store.load(snapshot, folder.path / "segments")
    rows = [{k: v for k, v in r.items() if not k.startswith(VOLATILE)} for r in folder.metrics().to_pylist()]
    client_rows = [{k: v for k, v in r.items() if k != "seconds"} for r in folder.clients()]
    return Ran(ending, folder, rows, client_rows, tree.from_numpy(load_tree(snapshot, "server")), states(store))


# -- a cluster in miniature --------------------------------------------------------------------------------------------


class Handle(NamedTuple):
    """A reference to a stored payload, as opaque as an object store's."""

    number: int


class SimPool(LocalPool):
    """`workers` workers, each with its own copy of the run; answers come back in an order drawn from `shuffle`.

    kill_at: numbers of calls (from 0, over the pool's life) whose answer is lost after it was computed: their worker is
    replaced and the call repeated on another one. Payloads are stored as copies, and jobs, answers and the run itself
    are pickled, as between processes; `damaged()` names the stored payloads that somebody wrote to.
    """

    def __init__(self, workers: int = 3, shuffle: int | None = 0, kill_at: Iterable[int] = ()):
        super().__init__()
        self.workers = [Worker() for _ in range(workers)]
        self.kill_at = set(kill_at)
        self.calls = 0
        self.moved = 0  # bytes of all pickled jobs, payloads apart
        self._draw = None if shuffle is None else np.random.default_rng(shuffle)
        self._runs: list[tuple[str, bytes, Any]] = []
        self._stored: list[tuple[tree.Tree, int]] = []

    def setup(self, run: str, config: Any, federation: Federation, start: tree.Tree | None) -> None:
        self._runs.append((run, pickle.dumps((config.to_dict(), federation.numpy())), start))
        for w in self.workers:
            self._set_up(w, *self._runs[-1])

    def _set_up(self, worker: Worker, run: str, packed: bytes, start: Any) -> None:
        settings, arrays = pickle.loads(packed)
        worker.setup(run, Config.from_dict(settings), Federation.from_numpy(arrays), start)

    def put(self, value: tree.Tree) -> Any:
        value = pickle.loads(pickle.dumps(value))
        self._stored.append((value, _crc(value)))
        return Handle(len(self._stored) - 1)

    def get(self, handle: Any) -> tree.Tree:
        return self._stored[handle.number][0]

    def damaged(self) -> list[int]:
        """Numbers of the stored payloads that are not what was put there."""
        return [i for i, (value, crc) in enumerate(self._stored) if _crc(value) != crc]

    def execute(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        n = len(jobs)
        for i in range(n) if self._draw is None else self._draw.permutation(n).tolist():
            yield i, self._one(jobs[i])

    def _one(self, job: Job, dead: int | None = None) -> Outcome:
        able = [w for w in range(len(self.workers)) if w != dead] or [0]
        w = able[self.calls % len(able) if self._draw is None else int(self._draw.integers(len(able)))]
        packed = pickle.dumps(Job(job.run, job.request))
        self.moved += len(packed)
        answer = self.workers[w].do(pickle.loads(packed), [self.get(h) for h in job.handles])
        self.calls += 1
        if self.calls - 1 in self.kill_at:
            self.restarts += 1
            self.workers[w] = Worker()
            for run in self._runs:
                self._set_up(self.workers[w], *run)
            return self._one(job, dead=w)
        result, large, states = pickle.loads(pickle.dumps(answer))
        return Outcome(result, *(None if x is None else self.put(x) for x in (large, states)))


def _crc(value: tree.Tree) -> int:
    crc = 0
    for path, leaf in tree.leaves(value):
        crc = zlib.crc32("/".join(path).encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(leaf.bits if isinstance(leaf, tree.BF16) else leaf).tobytes(), crc)
    return crc
