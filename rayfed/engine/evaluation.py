"""Evaluation: what the engine itself asks clients for, as visits that run where training runs and are vectorised alike, and the
scores of a round that follow from it.

`local` is also scored inside training visits: see `with_local_score`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed import adversarial, keys, tree
from rayfed.adapters import ranks
from rayfed.engine import stream_scores
from rayfed.engine.scoring import ClientRows, Scoring, SetScores, scoring
from rayfed.execute.batches import pooled_pieces, scored_pieces
from rayfed.fold import mean
from rayfed.lazy import torch
from rayfed.method import Method
from rayfed.metrics import Measure, ari, family_scope, scope
from rayfed.models import private_buffers
from rayfed.training import sgd_visit
from rayfed.visits import Arguments, ClientContext, Phase, Visit, accumulate, epochs, once, whole

if TYPE_CHECKING:
    from rayfed.fed import Dispatcher, Fed
    from rayfed.partition import Federation, Index
    from rayfed.task import Task
    from rayfed.tree import Tree


Scores = Mapping[str, float]  # of one client: sums over its examples by measure, and `n`, how many these are

MOST_CLIENTS = 10_000  # that `evaluate.clients: auto` scores, of those that take part and of the held-out ones
LOCAL_SCORES = "scores of the local model"  # the part that a training visit sends in addition to its method's


class Scored(NamedTuple):
    """What scoring clients gave: client -> sums over its rows, and where metrics of sets are asked for, client -> what is known of each
    row."""

    sums: Mapping[int, Scores]
    rows: Mapping[int, ClientRows]

    def of(self, keep: Callable[[int], bool]) -> Scored:
        """Return those of some clients."""
        sums = {c: s for c, s in self.sums.items() if keep(c)}
        return Scored(sums, {c: r for c, r in self.rows.items() if keep(c)})


class Evaluation(Enum):
    """What the engine itself asks clients for, where a method asks for its visits by name."""

    ROWS = "rows"  # scores of one model, row by row; piece i of the rows is "client" i
    PERSONAL = "personal"  # scores of what each client is served, on its own test split
    CLUSTER = "cluster"  # scores of the expert of each client's cluster, on its own test split
    LOCAL = "local"  # scores of what each client is served, fine-tuned on its train split
    ENSEMBLE = "ensemble"  # the served models' predictions on the pooled test set
    BACKDOOR = "backdoor"  # scores of what honest clients are served, on test rows with an attacker's trigger
    ROBUST = "robust"  # scores of what each client is served, on its own test rows moved against it
    RETAINED = "retained"  # scores of what each client is served on another task's rows
    SERVED = "served"  # the served model itself, for use from Python

    def __str__(self) -> str:
        return f"evaluation {self.value}"

    @property
    def of_the_server(self) -> bool:
        """Whether it scores models of the server as they are, in no client's LoRA rank."""
        return self in (Evaluation.ROWS, Evaluation.CLUSTER)


def build(
    evaluation: Evaluation,
    method: Method,
    task: Task,
    pieces: int,
    rows: int = 0,
    data: Mapping[str, Any] | None = None,
    split: str = "test",
) -> Visit:
    """Build the visit of an evaluation.

    pieces: into how many pieces the pooled test set is cut; rows: if not 0, at least the largest number of rows that one client
    is scored on: scores of each row are then sent too, as part `rows` = {NAME: (2 rows, ...)}, padding at the end; data: see `scoring`;
    split: of which rows what each client is served is scored.
    """
    if evaluation is Evaluation.ROWS:
        return _row_by_row(scoring(task, data)._replace(task=_read_at_server(method, task)))
    if evaluation is Evaluation.CLUSTER:
        of = scoring(task, data)
        own = of.task.family_name
        return _measure(of, lambda client: tree.pick(client.shared["experts"][own], client.mine["expert"]), rows)
    view, seen = method.view(task), task.read_by(partial(method.logits, task))
    if evaluation in (Evaluation.PERSONAL, Evaluation.BACKDOOR, Evaluation.RETAINED):
        split = split if evaluation is Evaluation.PERSONAL else evaluation.value
        of = scoring(task, data)._replace(task=seen)
        return scored(view, of, lambda client, carry: view.end(client, carry)[0]["model"], rows, split)
    if evaluation is Evaluation.ROBUST:
        of = scoring(task)._replace(task=adversarial.attacked(seen, method.config.evaluate.adversary))
        return scored(view, of, lambda client, carry: view.end(client, carry)[0]["model"])
    if evaluation is Evaluation.SERVED:
        return Visit(
            view.begin,
            view.phases,
            lambda client, carry: (
                {"model": view.end(client, carry)[0]["model"], "rank": client.info.rank},
                client.own,
            ),
            view.vectorize,
        )
    if evaluation is Evaluation.LOCAL:
        tuned = _finetuned(view, method, seen)
        of = scoring(task, data)._replace(task=seen)
        return scored(tuned, of, lambda client, carry: carry["model"], rows)
    return _predictions(view, seen, pieces)


def _zero(of: Scoring, rows: int = 0) -> Tree:
    """Return what one scoring has summed, and which rows it has seen, before its first batch; rows: see `build`."""
    like: Any = {"dtype": of.task.dtype, "device": of.task.device}
    seen = {"rows": {n: torch.zeros(2 * rows, *shape, **like) for n, shape in of.shapes.items()}} if rows else {}
    return {"sum": {n: torch.zeros((), **like) for n in of.task.row_measures}, "n": torch.zeros((), **like), **seen}


def _read_at_server(method: Method, task: Task) -> Task:
    """Return the task that reads models of the server: the network's own parameters by the network, any other tree by `Method.logits`."""
    if type(method).logits is Method.logits:
        return task

    def answer(model: Tree, x: Any) -> Any:
        plain = all(n in task.params_like or n in task.frozen for n in model)
        return task.apply(model, x) if plain else method.logits(task, model, x)

    return task.read_by(answer)


def _row_by_row(of: Scoring) -> Visit:
    """Build a visit that scores `shared["model"]` on a piece of rows: by name what is known of each row, (b, ...)."""
    step = Phase(whole("rows"), lambda carry, batch, key: of.of(carry["model"], batch), counts=False)
    return Visit(lambda client: {"model": client.shared["model"]}, [step], lambda client, carry: (carry, client.own))


def _add(sums: Tree, scores: Tree, w: Any) -> Tree:
    """Add the scores (B, ...) of one batch's rows, whose weights w are 0 on padding."""
    out = accumulate(sums, {n: scores[n] for n in sums["sum"]}, w)
    if "rows" not in sums:
        return out
    place = sums["n"].long() + torch.arange(len(w), device=w.device)  # only the last batch of a client has padding

    def put(x: Any, s: Any) -> Any:
        there, at = (t.reshape(-1, *[1] * (s.dim() - 1)).expand_as(s) for t in (w > 0, place))
        return x.scatter(0, at, torch.where(there, s, torch.zeros_like(s)).to(x.dtype))

    return {**out, "rows": {n: put(x, scores[n]) for n, x in sums["rows"].items()}}


def _sent(sums: Tree) -> Tree:
    """Return the parts that a scoring sends."""
    return {**sums["sum"], **{part: x for part, x in sums.items() if part != "sum"}}


def _measure(of: Scoring, model: Callable[[ClientContext], Tree], rows: int = 0, split: str = "test") -> Visit:
    """Build a visit that scores `model(client)` on a split of the client's."""

    def step(carry: Tree, batch: Any, key: Any) -> Tree:
        scores = of.of(carry["model"], batch)
        return {"model": carry["model"], "scored": _add(carry["scored"], scores, batch["w"])}

    return Visit(
        lambda client: {"model": model(client), "scored": _zero(of, rows)},
        [Phase(once(split), step, counts=False)],
        lambda client, carry: (_sent(carry["scored"]), client.own),
    )


def scored(
    inner: Visit, of: Scoring, model: Callable[[ClientContext, Tree], Tree], rows: int = 0, split: str = "test"
) -> Visit:
    """Extend a visit: after `inner`, its `model(client, carry)` is scored on a split of the client's, and only that is sent."""

    def enter(client: ClientContext, carry: Tree) -> Tree:
        return {"model": model(client, carry), "scored": _zero(of, rows)}

    last = _measure(of, lambda client: {}, rows, split)
    phase = last.phases[0]._replace(enter=enter)
    return Visit(inner.begin, [*inner.phases, phase], last.end, inner.vectorize)


def with_local_score(inner: Visit, task: Task) -> Visit:
    """Extend a training visit, so that it also sends LOCAL_SCORES: the scores of its locally trained model on the client's test split."""
    trained, of = inner.local, scoring(task)
    assert trained is not None

    def enter(client: ClientContext, carry: Tree) -> Tree:
        return {"inner": carry, "scored": _zero(of)}

    def step(carry: Tree, batch: Any, key: Any) -> Tree:
        scores = of.of(trained(carry["inner"]), batch)
        return {"inner": carry["inner"], "scored": _add(carry["scored"], scores, batch["w"])}

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        parts, own = inner.end(client, carry["inner"])
        return {**parts, LOCAL_SCORES: _sent(carry["scored"])}, own

    return Visit(inner.begin, [*inner.phases, Phase(once("test"), step, enter, counts=False)], end, inner.vectorize)


def _finetuned(view: Visit, method: Method, task: Task) -> Visit:
    asked = method.config.evaluate
    phases = [(epochs(asked.finetune_epochs), lambda name: name in task.params_like or name == "own")]
    tune = sgd_visit(task.loss, method.local, phases=phases, lr=asked.finetune_lr)
    first = tune.phases[0]
    inner_enter = first.enter
    assert inner_enter is not None

    def enter(client: ClientContext, carry: Tree) -> Tree:
        served = view.end(client, carry)[0]["model"]
        return inner_enter(client, {"model": served})

    return Visit(view.begin, [*view.phases, first._replace(enter=enter)], tune.end, view.vectorize)


def _predictions(view: Visit, task: Task, pieces: int) -> Visit:
    """Build a visit that predicts every pooled test example with the served model, piece by piece: part `p` = {"0": (b, C), ...}."""

    def enter(client: ClientContext, carry: Tree) -> Tree:
        return {"model": view.end(client, carry)[0]["model"], "p": {}}

    def step(carry: Tree, batch: Any, key: Any) -> Tree:
        return {"model": carry["model"], "p": {**carry["p"], str(len(carry["p"])): task.predict(carry["model"], batch)}}

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        return {"p": carry["p"]}, client.own

    phases = [Phase(whole(f"pooled {i}"), step, enter if i == 0 else None, counts=False) for i in range(pieces)]
    return Visit(view.begin, [*view.phases, *phases], end, view.vectorize)


def nothing_to_score(federation: Federation) -> str | None:
    """Return a sentence where a run has no metric, since there is nothing to score a model on; None where there is."""
    if len(federation.test.rows) or len(federation.pooled_test):
        return None
    return "no metric: the data set has no test part and clients keep none for tests (federation.split.test), so nothing is scored"


class Unscored(NamedTuple):
    """Metrics of a round that something is missing from, and why: they are null, or means without some clients."""

    metrics: list[str]
    reason: str


class Evaluator:
    """Scores a server state in all scopes that the method has.

    unscored: what the last evaluation could not score; kept: its scores of each row, by scope, where `evaluate.rows` names the
    round: `rows` (n,) of the data arrays, `sizes` of the clients whose rows follow each other, and by measure (n,) float32. A
    scope that something is missing from has none.
    """

    def __init__(self, fed: Fed, dispatcher: Dispatcher):
        self.fed, self.dispatcher = fed, dispatcher
        self.unscored: list[Unscored] = []
        self.kept: dict[str, dict[str, np.ndarray]] = {}
        self.config, self.method, self.task = fed.config, fed.method, fed.task
        self.sets = SetScores.of(self.config, self.federation, self.task)

    @property
    def federation(self) -> Federation:
        """Return who holds what in this round."""
        return self.fed.federation

    @property
    def _have_rows(self) -> np.ndarray:
        return np.flatnonzero(self.federation.test.sizes())

    def measures(self) -> list[Measure]:
        """Return all that is measured."""
        return [
            *self.task.measures,
            *(m for m in (self.sets.measures if self.sets else ()) if m not in self.task.measures),
        ]

    def sample(self) -> str | None:
        """Return a sentence where `evaluate.clients: auto` scores a sample of the clients; None where it scores all."""
        if self.config.evaluate.clients != "auto":
            return None
        among = self._have_rows if self.method.universal else np.arange(self.federation.clients)
        held = int((among >= self.fed.population).sum())
        sides = (len(among) - held, "clients"), (held, "held-out clients")
        of = " and ".join(f"{MOST_CLIENTS:,} of {n:,} {who}" for n, who in sides if n > MOST_CLIENTS)
        said = f"scores of single clients are of a sample, {of}, drawn anew for each evaluation; evaluate.clients: all scores everybody"
        return said if of else None

    def evaluate(
        self, state: Tree, local_scores: Mapping[int, Scores], seconds: Mapping[int, float]
    ) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
        """Return the round's numbers, by NAME/SCOPE, and one row per scored client.

        local_scores: of the models that this round's clients trained; seconds: of their visits, for the rows. Scope `global` is
        null where a piece of the pooled test set cannot be scored.
        """
        method, population = self.method, self.fed.population
        self.unscored, self.kept = [], {}
        scored = self.draw_clients(self._have_rows)
        participants = [c for c in scored if c < population]
        served = ServedPayload(method, state)
        personal = self._score_served(scored, served)
        row: dict[str, float | None] = {}
        row |= self._scope("personal", personal.of(lambda c: c < population))
        row |= self._scope("unseen", personal.of(lambda c: c >= population))
        for number, name in enumerate(self.task.families):
            row |= self._scope(family_scope(name), personal.of(partial(self._takes_part_in, number)))
        cluster_of = method.clusters(state)
        if cluster_of is not None:
            row |= self._score_clusters(state, participants, cluster_of) | self._score_clustering(cluster_of)
        if self.config.evaluate.finetune_epochs:
            row |= self._scope("local", self._ask(Evaluation.LOCAL, participants, served))
        elif local_scores:
            row |= scope("local", local_scores)
        if len(self.federation.pooled_test):
            row |= self._score_pool(state, served)
        if self.fed.whole.stages:
            row |= self._score_stream(served, personal.of(lambda c: c < population).sums)
        if self.config.evaluate.adversary is not None:
            row |= scope("robust", self._ask(Evaluation.ROBUST, participants, served).sums)
        if self.federation.backdoor is not None:
            row |= self._score_backdoor(self.federation.backdoor, scored, served)
        if len(self.federation.retained):
            row |= self._score_retained(state, participants, served)
        return row, [self._make_row(c, personal, cluster_of, seconds.get(c)) for c in sorted(personal.sums)]

    def _takes_part_in(self, family: int, client: int) -> bool:
        assert self.task.family is not None
        return client < self.fed.population and int(self.task.family[client]) == family

    def _make_row(
        self, client: int, scored: Scored, cluster_of: Mapping[int, int] | None, seconds: float | None
    ) -> dict[str, Any]:
        sums = scored.sums[client]
        n = sums["n"]
        means = {name: total / n if n else None for name, total in sums.items() if name != "n"}
        return {
            "client": client,
            "name": self.federation.names[client],
            "unseen": client >= self.fed.population,
            "group": int(self.federation.group[client]),
            **self._family_of(client),
            "cluster": None if cluster_of is None or client not in cluster_of else int(cluster_of[client]),
            "examples": int(self.federation.train.offsets[client + 1] - self.federation.train.offsets[client]),
            "test_examples": int(n),
            **means,
            **(self.sets.of_client(scored.rows.get(client)) if self.sets else {}),
            "seconds": seconds,
        }

    def _family_of(self, client: int) -> dict[str, str]:
        return {} if self.task.family is None else {"family": [*self.task.families][self.task.family[client]]}

    def _scope(self, name: str, found: Scored) -> dict[str, float | None]:
        """Return a scope's metrics, and note where one of a set of rows is undefined."""
        row: dict[str, float | None] = {**scope(name, found.sums)}
        if self.sets is not None and found.rows:
            values, undefined = self.sets.scope(name, found.rows)
            self.unscored += [Unscored(metrics, why) for metrics, why in undefined]
            row |= values
        return row

    def draw_clients(self, among: np.ndarray) -> list[int]:
        """Draw as many clients as the config says by a key of the round; all where it says so."""
        wanted, n = self.config.evaluate.clients, len(among)
        if wanted == "all":
            return among.tolist()
        rng = keys.numpy(self.fed.key("evaluated clients"))
        if wanted == "auto":
            sides = among[among < self.fed.population], among[among >= self.fed.population]
            drawn = [s if len(s) <= MOST_CLIENTS else rng.choice(s, MOST_CLIENTS, replace=False) for s in sides]
            return sorted(np.concatenate(drawn).tolist())
        count = wanted if isinstance(wanted, int) else max(1, math.ceil(wanted * n))
        return sorted(among[rng.choice(n, min(count, n), replace=False)].tolist())

    # -- on clients' own rows ------------------------------------------------------------------------------------------

    def _score_served(self, clients: Sequence[int], served: ServedPayload) -> Scored:
        """Score what each client is served on its own test split; one model for all on all their rows at once."""
        model = served_to_all(self.method, self.task, served.shared)
        if model is None:
            return self._ask(Evaluation.PERSONAL, clients, served)
        if not clients:
            return Scored({}, {})
        rows, first, sizes = rows_of(self.federation.test, np.asarray(clients))
        by_row = self.score_rows(model, rows)
        if by_row.failures:  # whose row it is, and what follows, shows when each client is asked
            return self._ask(Evaluation.PERSONAL, clients, served)
        if self._keeps():
            taking_part = sizes[: sum(c < self.fed.population for c in clients)]
            self._keep("personal", rows[: taking_part.sum()], taking_part, by_row.values)
        sums = {n: np.add.reduceat(by_row.values[n], first).tolist() for n in self.task.row_measures}
        each = list(enumerate(zip(clients, sizes.tolist(), strict=True)))
        kept: dict[int, ClientRows] = {}
        if self.sets is not None:
            for i, (c, n) in each:
                at = slice(first[i], first[i] + n)
                kept[c] = ClientRows(rows[at], {name: v[at] for name, v in by_row.values.items()})
        return Scored({c: {"n": n, **{name: v[i] for name, v in sums.items()}} for i, (c, n) in each}, kept)

    def _score_backdoor(self, triggered: Index, clients: Sequence[int], served: ServedPayload) -> dict[str, float]:
        """Score scope `backdoor`: what honest clients are served, on their test rows with an attacker's trigger."""
        theirs = [c for c in clients if len(triggered[c])]
        return scope("backdoor", self._ask(Evaluation.BACKDOOR, theirs, served).sums)

    def _score_retained(self, state: Tree, clients: Sequence[int], served: ServedPayload) -> dict[str, float | None]:
        """Score scope `retained` on another task's rows: the one model, or where a method has none what clients are served, all alike."""
        rows = self.federation.retained
        if not self.method.universal:
            found = scope("retained", self._ask(Evaluation.RETAINED, clients, served).sums)
            return {n: v for n, v in found.items() if not n.endswith("_ex")}
        by_row = self.score_rows(state[str(self.method.universal)], rows)
        if by_row.failures:
            self._note("retained", f"null: {min(by_row.failures.items())[1]}")
            return {f"{n}/retained": None for n in self.task.row_measures}
        return {f"{n}/retained": float(by_row.values[n].mean()) for n in self.task.row_measures}

    def _score_stream(self, served: ServedPayload, now: Mapping[int, Scores]) -> dict[str, float]:
        """Score what clients are served on each task of a stream so far; now: their scores on the present one."""
        engine, measures = self.dispatcher.engine, [m for m in self.task.measures if m.of == "rows"]
        seen = [*(self._score_stage(k, served) for k in range(1, self.fed.stage)), now]
        row, kept = stream_scores.row(measures, seen, engine.get(stream_scores.NAME), self.fed.stage_ends)
        if self.fed.stage_ends:
            engine.put(stream_scores.NAME, kept)
        return row

    def _score_stage(self, number: int, served: ServedPayload) -> Mapping[int, Scores]:
        """Score what clients that take part are served on their test rows of a task of the stream; who cannot be scored is left out."""
        test = self.fed.whole.stage(number).test
        clients = self.draw_clients(np.flatnonzero(test.sizes()[: self.fed.population]))
        model = served_to_all(self.method, self.task, served.shared)
        if model is not None and clients:
            rows, first, sizes = rows_of(test, np.asarray(clients))
            by_row = self.score_rows(model, rows)
            if not by_row.failures:
                sums = {n: np.add.reduceat(by_row.values[n], first).tolist() for n in self.task.row_measures}
                each = enumerate(zip(clients, sizes.tolist(), strict=True))
                return {c: {"n": n, **{name: v[i] for name, v in sums.items()}} for i, (c, n) in each}
        out: dict[int, Scores] = {}
        for group, mine in served.groups(clients):
            split = (("split", f"test {number}"),)
            replies = self.dispatcher.ask(Evaluation.PERSONAL, group, shared=served.shared, mine=mine, arguments=split)
            if replies.ids:
                found = {part: replies.stacked(part).tolist() for part in ("n", *self.task.row_measures)}
                out |= {c: {name: v[i] for name, v in found.items()} for i, c in enumerate(replies.ids)}
        return out

    def score_rows(self, model: Tree, rows: np.ndarray) -> RowScores:
        """Score one model of the server on rows of the data arrays, row by row."""
        pieces = scored_pieces(rows, self.task)
        made = self.dispatcher.ask(
            Evaluation.ROWS,
            range(len(pieces)),
            shared={"model": model},
            mine={},
            rows=pieces,
            arguments=self._arguments(),
        )
        shapes = self.sets.shapes if self.sets else dict.fromkeys(self.task.row_measures, ())
        values = {name: np.full((*pieces.shape, *shape), np.nan) for name, shape in shapes.items()}
        for name, found in values.items():
            if made.ids:
                found[list(made.ids)] = made.stacked(name).double().numpy()
        return RowScores(
            {n: v.reshape(-1, *v.shape[2:])[: len(rows)] for n, v in values.items()}, made.failures, pieces.shape[1]
        )

    def _ask(self, evaluation: Evaluation, clients: Sequence[int], served: Payload) -> Scored:
        """Ask clients for an evaluation; returns the sums of each one's scores, and notes who cannot be scored."""
        out: dict[int, Scores] = {}
        failures: dict[int, str] = {}
        test = self.federation.test
        copies = (
            Evaluation.BACKDOOR,
            Evaluation.ROBUST,
            Evaluation.RETAINED,
        )  # of test rows, changed, or everybody's
        sends = (self._keeps() or self.sets) and evaluation not in copies
        most = max((len(test[c]) for c in clients), default=0) if sends else 0
        by_row: dict[int, Mapping[str, np.ndarray]] = {}
        for group, mine in served.groups(clients):
            replies = self.dispatcher.ask(
                evaluation,
                group,
                shared=served.shared,
                mine=mine,
                arguments=() if evaluation is Evaluation.ROBUST else self._arguments(most),
            )
            if replies.ids:
                sums = {part: replies.stacked(part).tolist() for part in ("n", *self.task.row_measures)}
                out.update({c: {name: v[i] for name, v in sums.items()} for i, c in enumerate(replies.ids)})
                if most:
                    scores = replies.stacked("rows")
                    by_row |= {c: {n: x[i].numpy() for n, x in scores.items()} for i, c in enumerate(replies.ids)}
            failures |= replies.failures
        if failures:
            first, reason = min(failures.items())
            said = f"means without {len(failures)} of {len(clients)} clients" if out else "missing: no client is left"
            self._note(evaluation.value, f"{said} (client {first}: {reason})")
        elif (
            self._keeps()
            and evaluation not in copies
            and (counted := [c for c in sorted(clients) if c < self.fed.population])
        ):
            rows, _, sizes = rows_of(test, np.asarray(counted, np.int64))
            scored = {
                n: np.concatenate([by_row[c][n][: len(test[c])] for c in counted]) for n in self.task.row_measures
            }
            self._keep(evaluation.value, rows, sizes, scored)
        kept = {c: ClientRows(test[c], {n: x[: len(test[c])] for n, x in found.items()}) for c, found in by_row.items()}
        return Scored(out, kept if self.sets else {})

    def _arguments(self, most: int = 0) -> Arguments:
        """Return the arguments of an evaluation: how many rows at most it scores of a client, where they are to be sent; and whether
        with all that metrics of sets read."""
        return ((("rows", most),) if most else ()) + ((("everything", True),) if self.sets else ())

    def _keeps(self) -> bool:
        """Return whether the scores of each row of this round are kept."""
        return self.fed.round in self.config.evaluate.rows

    def _keep(
        self, scope: str, rows: np.ndarray, sizes: np.ndarray | list[int], scores: Mapping[str, np.ndarray]
    ) -> None:
        """Keep a scope's scores by row; sizes: of the clients whose rows follow each other. Of longer scores the first count."""
        by_row = {n: np.asarray(scores[n][: len(rows)], np.float32) for n in self.task.row_measures}
        self.kept[scope] = {"rows": rows, "sizes": np.asarray(sizes), **by_row}

    def _note(self, scope: str, what: str) -> None:
        """Note what all metrics of a scope are."""
        metrics = [f"{name}/{scope}" for name in self._names()]
        self.unscored.append(Unscored(metrics, f"{' and '.join(metrics)} are {what}"))

    def _null_global(self, why: str) -> dict[str, float | None]:
        """Return scope `global` without numbers, and note why: a score of the rest would be of another test set."""
        self._note("global", f"null: {why}")
        return {f"{name}/global": None for name in self._names()}

    def _names(self) -> tuple[str, ...]:
        """Return the names of all that is measured."""
        return self.task.row_measures + (self.sets.names if self.sets else ())

    def _score_clusters(
        self, state: Tree, participants: list[int], cluster_of: Mapping[int, int]
    ) -> dict[str, float | None]:
        """Score scope `cluster`: each client's expert on the client's own test split."""
        experts = self.method.experts(state)
        if not experts:
            return {}
        members = {c: self.task.of_client(c).family_name for c in participants if cluster_of.get(c) in experts}
        ids = {name: sorted({cluster_of[c] for c, n in members.items() if n == name}) for name in members.values()}
        stacked = {"experts": {name: tree.stack([experts[k] for k in found]) for name, found in ids.items()}}
        places = {c: {"expert": torch.tensor(ids[name].index(cluster_of[c]))} for c, name in members.items()}
        return self._scope("cluster", self._ask(Evaluation.CLUSTER, list(members), Payload(stacked, places.get)))

    def _score_clustering(self, cluster_of: Mapping[int, int]) -> dict[str, float]:
        """Count the clusters in use, and measure how well they agree with the planted groups."""
        clients, found = (np.fromiter(x, np.int64, len(cluster_of)) for x in (cluster_of, cluster_of.values()))
        row: dict[str, float] = {"clusters/count": len(np.unique(found))}
        planted = self.federation.group[clients]
        if (planted >= 0).sum() > 1:
            row["clusters/ari"] = ari(planted[planted >= 0].tolist(), found[planted >= 0].tolist())
        return row

    # -- on the pooled test set ----------------------------------------------------------------------------------------

    def _score_pool(self, state: Tree, served: ServedPayload) -> dict[str, float | None]:
        """Score scope `global`: of the one model, or of a mixture of what clients are served, where the task can be answered by one."""
        if self.method.universal:
            return self._score_one_model(state)
        return self._score_mixture(served) if self.task.pooled else {}

    def _score_one_model(self, state: Tree) -> dict[str, float | None]:
        """Score scope `global` of a method with one model: on the pooled test set, row by row."""
        pooled = self.federation.pooled_test
        by_row = self.score_rows(state[str(self.method.universal)], pooled)
        if failures := by_row.failures:
            piece, reason = min(failures.items())
            first, last = piece * by_row.width + 1, min((piece + 1) * by_row.width, len(pooled))
            more = f"; {len(failures) - 1} more pieces of it fail too" if len(failures) > 1 else ""
            return self._null_global(f"rows {first} to {last} of the pooled test set cannot be scored: {reason}{more}")
        if self._keeps():
            self._keep("global", pooled, [len(pooled)], by_row.values)
        return self._global(pooled, by_row.values)

    def _global(self, rows: np.ndarray, scores: Mapping[str, Any]) -> dict[str, float | None]:
        """Return scope `global` of one model's scores of rows."""
        out: dict[str, float | None] = {f"{n}/global": float(scores[n].mean()) for n in self.task.row_measures}
        return out | self._scope(
            "global",
            Scored({}, {-1: ClientRows(rows, {n: np.asarray(x) for n, x in scores.items()})} if self.sets else {}),
        )

    def _pieces(self) -> Arguments:
        """Return the argument of a mixture's predictions under a stream: into how many pieces the task's pooled test set is cut."""
        return (("pieces", len(pooled_pieces(self.federation))),) if self.fed.whole.stages else ()

    def _score_mixture(self, served: ServedPayload) -> dict[str, float | None]:
        """Score scope `global` without one model: the mean of the served models' predictions, weighted by train examples."""
        everyone = np.arange(self.federation.clients)
        participants = [c for c in self.draw_clients(everyone) if c < self.fed.population]
        total: Any = None
        weight = 0.0
        failures: dict[int, str] = {}
        for group, mine in served.groups(participants):
            replies = self.dispatcher.ask(
                Evaluation.ENSEMBLE,
                group,
                shared=served.shared,
                mine=mine,
                folds=(mean("p"),),
                arguments=self._pieces(),
            )
            failures |= replies.failures
            if not replies.ids:
                continue
            part = tree.scale(replies.folded["p"], replies.weight["p"])
            total = part if total is None else tree.add(total, part)
            weight += replies.weight["p"]
        if failures:
            who = f"{len(failures)} of {len(participants)} served models"
            return self._null_global(f"{who} cannot predict the pooled test set: {min(failures.items())[1]}")
        if total is None:
            return {}
        predictions = torch.cat([total[k] for k in sorted(total, key=int)]) / weight
        pooled = self.federation.pooled_test
        rows = {n: torch.as_tensor(np.asarray(a)[pooled]) for n, a in self.federation.arrays.items()}
        judged = self.task.judge_mean(predictions, rows)
        if self.sets is not None and "prediction" in self.sets.shapes:
            judged = {**judged, "prediction": predictions}
        if self._keeps():
            self._keep("global", pooled, [len(pooled)], {n: v.numpy() for n, v in judged.items()})
        return self._global(pooled, judged)


class Payload:
    """What clients are sent for scoring: parts for everyone, and for some clients a small tree of their own.

    mine: client -> its tree, or None.
    """

    def __init__(self, shared: Tree, mine: Callable[[int], Tree | None]):
        self.shared, self._mine = shared, mine
        self._known: dict[int, Tree] = {}

    def groups(self, clients: Sequence[int]) -> Iterator[tuple[list[int], dict[int, Tree]]]:
        """Yield (clients, each one's own tree): those with one and those without, since their payloads differ."""
        for c in clients:
            if c not in self._known:
                self._known[c] = self._mine(c) or {}
        own = {c: self._known[c] for c in clients if self._known[c]}
        for group, theirs in (([c for c in clients if c in own], own), ([c for c in clients if c not in own], {})):
            if group:
                yield group, theirs


class ServedPayload(Payload):
    """What a method serves from a server state."""

    def __init__(self, method: Method, state: Tree):
        super().__init__(method.serve(state), partial(method.mine, state))


def rows_of(index: Index, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of these clients in an index one after another, where each client's begin, and how many they are."""
    begin = index.offsets[clients]
    sizes = index.offsets[clients + 1] - begin
    first = np.cumsum(sizes) - sizes
    return index.rows[np.repeat(begin - first, sizes) + np.arange(sizes.sum())], first, sizes


class RowScores(NamedTuple):
    """Scores of one model: by measure a number for each row, (n,), NaN in pieces of `width` rows that fail, with the reason."""

    values: dict[str, np.ndarray]
    failures: Mapping[int, str]
    width: int


# -- one model for all clients -----------------------------------------------------------------------------------------


class _Unread:
    """Stand for what is known of a client where nothing may depend on it: whatever is done with it raises TypeError."""

    def _refuse(self, *args: Any) -> Any:
        raise TypeError("the client is read")

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __contains__ = __eq__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def served_to_all(method: Method, task: Task, shared: Tree) -> Tree | None:
    """Return the one model that a method serves every client; None where it depends on the client.

    It does not where all have one architecture, `view` is no work on data and comes to its model without reading what is known of a
    client, which is tried; and clients hold the same model of it: none of a lower LoRA rank, none with buffers of its own.
    """
    if task.families:
        return None
    view, config = method.view(task), method.config
    differ = ranks.unequal(config) or ranks.kept(config, method.wire) or private_buffers.PART in method.wire.keep
    if differ or view.phases or type(method).logits is not Method.logits:
        return None
    unread: Any = _Unread()
    client = ClientContext(
        unread, tree.map(torch.clone, shared), unread, unread
    )  # a view may write into what it is sent
    try:
        model = view.end(client, view.begin(client))[0]["model"]
        return model if all(isinstance(x, torch.Tensor) for x in tree.values(model)) else None
    except Exception:  # of the stand-in, or what a client's own would raise where it is asked
        return None
