"""One run inside one process: its method, its task and its data, which every call of the run uses again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rayfed import aggregate, cut, keys, methods, tree
from rayfed.adapters import ranks
from rayfed.engine import evaluation, families
from rayfed.engine.attackers import Attackers
from rayfed.engine.evaluation import Evaluation
from rayfed.engine.failures import FailurePolicy
from rayfed.execute.batches import BatchSampler
from rayfed.lazy import torch
from rayfed.models import private_buffers
from rayfed.transform.chain import Chain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.fold import Fold
    from rayfed.method import Method
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree
    from rayfed.visits import Arguments, Visit

KEPT = 64  # visits of a run in one process


class Resident:
    """A run's method, task, data and the visits built from them.

    start: what the run starts from (`rayfed.models.start.start_from`); like: a resident run whose task and data serve again
    if they are the same.
    """

    task: Task
    data: dict[str, Any]
    sampler: BatchSampler

    def __init__(self, config: Config, federation: Federation, start: Any, device: str, like: Resident | None = None):
        self.config, self.device = config, device
        self.data_key = data_key(config)
        self.method: Method = methods.of(config)
        self.policy = FailurePolicy.of(config.failures)
        if like is not None and like.data_key == self.data_key:
            self.task, self.data, self.sampler = like.task, like.data, like.sampler
        else:
            self.task = families.build(config, federation, device, start)
            self.data = {n: self._tensor(x) for n, x in federation.arrays.items()}
            self.sampler = BatchSampler(
                federation,
                seed=config.seed,
                batch_size=config.local.batch_size,
                device=device,
                dtype=self.task.dtype,
                ranks=self.task.ranks,
            )
        if self.method.reads_rows:
            n = len(next(iter(self.data.values())))
            self.data = {**self.data, "row": torch.arange(n, device=device)}
        self.private_buffers = config.local.buffers == "private" and bool(self.task.buffers)
        if self.private_buffers:
            private_buffers.keep(self.method, self.task)
        self.chain = Chain.of(config, self.method, self.task)
        self.keeps_states = bool(self.method.wire.keep) or (self.chain is not None and self.chain.keeps)
        self.checks_each_reply = False  # each reply by itself for NaN; from the first call on whose fold has one
        self.keeps_rank = ranks.kept(config, self.method.wire)
        self.ranked = self.keeps_rank or ranks.unequal(config)
        self.rule = aggregate.of(config)
        self.scales = set(aggregate.ruled(self.method)) if self.rule and self.rule.needs == ("fold",) else set()
        self.attackers = Attackers.of(config, self.method, self.task)
        self._visits: dict[tuple[str | Evaluation, str, bool, int], Visit] = {}

    def _tensor(self, array: Any) -> Any:
        x = tree.from_numpy(array)
        return x.to(self.device, self.task.dtype if x.is_floating_point() else x.dtype)

    def scaled(self, parts: Tree, folds: Sequence[Fold]) -> Tree:
        """Return parts (k, ...) in which the rule has scaled each update whose mean is folded, by the norm of
        all that it sends of them, buffers aside."""
        names = sorted(self.scales & {f.part for f in folds if f.kind == "mean"})
        moved = {n: tree.without(parts[n], self.task.buffers) for n in names}
        if not moved:
            return parts
        norms = sum((x.flatten(1) ** 2).sum(1) for x in tree.values(moved)).sqrt()
        assert self.rule is not None
        factor = self.rule.scale(norms)
        made = tree.map(lambda x: x * factor.reshape(-1, *[1] * (x.dim() - 1)), moved)
        return {**parts, **{n: {**parts[n], **t} if isinstance(t, Mapping) else t for n, t in made.items()}}

    def combine(self, rows: Tensor, attack: int | None, asked: int) -> Tensor:
        """Combine coordinates (n, b) by the rule of aggregation, or by what an attack's clients agree on; (b,)."""
        if attack is None:
            assert self.rule is not None
            return self.rule.combine(rows)
        assert self.attackers is not None
        return self.attackers.attacks[attack].craft(rows, asked)

    def fresh_state(self, client: int) -> Tree:
        """Return a client's state before its first visit: the method's, or where transforms keep something too, both by name."""
        own = self.method.own_init(
            self.task.of_client(client), client, keys.key(self.config.seed, 0, client, "own state")
        )
        return {"method": own, "chain": self.chain.own_init()} if self.chain is not None and self.chain.keeps else own

    def visit(self, name: str | Evaluation, score_local: bool, arguments: Arguments = (), family: int = 0) -> Visit:
        """Build a visit of the method, or an evaluation, once for each family of clients.

        score_local: whether it also scores its locally trained model, where it has one; arguments: the visit's own.
        """
        key = name, repr(arguments), score_local, family  # as text, since 1, 1.0 and True are equal
        if key not in self._visits:
            while len(self._visits) >= KEPT:  # arguments that change from round to round must not pile up
                del self._visits[next(iter(self._visits))]
            self._visits[key] = self._build_visit(name, score_local, arguments, self.task.of_family(family))
        return self._visits[key]

    def _build_visit(self, name: str | Evaluation, score_local: bool, arguments: Arguments, task: Task) -> Visit:
        if isinstance(name, Evaluation):
            given = dict(arguments)
            data = self.data if given.pop("everything", False) else None
            pieces = given.pop("pieces", len(self.sampler.pieces))
            made = evaluation.build(name, self.method, task, pieces, data=data, **given)
        else:
            made = getattr(self.method, name).with_(**dict(arguments))(task)
            if self.private_buffers:
                made = private_buffers.at_client(made, self.method, task)
            if score_local and made.local is not None:
                made = evaluation.with_local_score(made, task)
            if task.cut is not None:
                made = cut.metered(made, task)
        if self.ranked and not (isinstance(name, Evaluation) and name.of_the_server):
            made = ranks.at_rank(made, task, self.keeps_rank)
        if self.private_buffers and isinstance(name, Evaluation) and not name.of_the_server:
            made = private_buffers.at_client(made, self.method, task)
        if task.vectorize is not True:
            made = made._replace(vectorize=task.vectorize)
        return made


def data_key(config: Config) -> str:
    """Return what decides a run's task and data, as text: runs that agree in it share one set."""
    d = config.to_dict()
    parts = [d[k] for k in ("seed", "task", "federation", "local", "init", "adapter", "attacks")]
    return json.dumps([*parts, d["evaluate"]["split"]], sort_keys=True)  # whose rows are scored
