"""The transforms of a run in their order: what becomes of a cohort's updates, and of what their folds gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed import keys, tree
from rayfed import transform as transforms
from rayfed.errors import FailsAgain, RunFailed
from rayfed.execute.tuning import replay
from rayfed.fold import total
from rayfed.lazy import torch
from rayfed.transform import At, Collected, Piece
from rayfed.transform.clip import Clip
from rayfed.transform.gaussian import Gaussian
from rayfed.transform.mask import Mask
from rayfed.transform.quantise import Quantise

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.fold import Fold, Folded
    from rayfed.method import Method
    from rayfed.task import Task
    from rayfed.transform import Transform
    from rayfed.tree import Tree

SUMS = "transforms/sums"  # the part of a reply that holds what transforms add up over clients
PRIVACY = "privacy"  # in the state, beside the transforms': what has been released


class Encoded(NamedTuple):
    """What became of the replies of c clients.

    parts: all parts, the updates as the server decodes them, or masked whole numbers; own: the chain's client states, (c, ...);
    sums: what is added up over clients, by transform; names: the parts that were transformed; nbytes: what these cost on the
    wire, None where no transform changes that.
    """

    parts: Tree
    own: Tree
    sums: Tree
    names: tuple[str, ...]
    nbytes: int | None


class Asked(NamedTuple):
    """What workers are told of an ask: the transforms' states at the server, and all clients that are asked, if masks need them."""

    state: Tree  # NumPy arrays
    everyone: tuple[int, ...] = ()


class Chain:
    """The transforms of one run for one method; nothing of it changes.

    updates: names of the parts that are acted on; keeps: whether clients keep something for it; sums_only: whether the server must
    see nothing of updates but folds of them.
    """

    def __init__(self, config: Config, method: Method, task: Task):
        self.config, self.task = config, task
        self.all = transforms.of(config)
        self.wire = {n: part for n, part in method.wire.up.items() if part.update}
        self.updates = tuple(self.wire)
        self.steps = [t for t in self.all if not isinstance(t, Mask)]
        self.clip = _only(self.all, Clip)
        self.gaussian = _only(self.all, Gaussian)
        self.mask = _only(self.all, Mask)
        self.central = self.gaussian is not None and self.gaussian.central
        self.sums_only = self.central or self.mask is not None
        self.adds = [t for t in self.all if t.adds]
        self._bounds_again = self.central and any(t.lossy for t in self.steps)
        declared = self._declared() if any(t.feedback or t.kind == "lowrank" for t in self.steps) else ()
        self._own = {t.kind: made for t in self.steps if (made := t.own_init(declared))}
        self.keeps = bool(self._own)
        self._known: dict[tuple[Piece, ...], Callable[..., Any]] = {}

    @classmethod
    def of(cls, config: Config, method: Method, task: Task) -> Chain | None:
        """Return the chain of a config; None where it has no transforms."""
        return cls(config, method, task) if config.transforms else None

    # -- what is kept --------------------------------------------------------------------------------------------------

    def state_init(self) -> Tree:
        """Return the state at the server before round 1, by transform."""
        states = {t.kind: made for t in self.all if (made := t.server_init())}
        zero = torch.zeros((), dtype=torch.int64)
        released = {PRIVACY: {"releases": zero, **({"round": zero} if self._in_turn else {})}} if self._accounts else {}
        return {**states, **released}

    def own_init(self) -> Tree:
        """Return a client's state before its first visit, by transform."""
        return self._own

    def asked(self, state: Tree, everyone: Sequence[int]) -> Asked:
        """Return what workers are told of an ask."""
        sent = {t.kind: state[t.kind] for t in self.all if t.kind in state}
        if self.gaussian is not None and self.clip is not None:
            sent[self.gaussian.kind] = {"bound": state[self.clip.kind]["norm"]}
        return Asked(tree.to_numpy(sent), tuple(everyone) if self.mask is not None else ())

    def _declared(self) -> tuple[Piece, ...]:
        """Return the pieces of all update parts, as the wire declares them."""
        return self._pieces({n: part.shape.zeros(self.task) for n, part in self.wire.items()}, lead=0)

    # -- at the clients ------------------------------------------------------------------------------------------------

    def encode(
        self, parts: Tree, own: Tree, clients: Sequence[int], asked: Asked, dispatch: int, weights: Tree
    ) -> Encoded:
        """Return what becomes of replies, leaves (c, ...), and of their clients' states, alike.

        clients: their ids; dispatch: the ask's number; weights: update part -> whole numbers (c,) that it is folded with, which
        masked parts are multiplied by.
        """
        names = tuple(n for n in self.updates if n in parts)
        if not names:
            return Encoded(parts, own, {}, (), None)
        sent = {n: parts[n] for n in names}
        pieces = self._pieces(sent, lead=1)
        v = self._vectors(sent, pieces, len(clients))
        seed, device = self.config.seed, v.device
        key = torch.tensor([keys.key(seed, dispatch, c, "transforms") for c in clients], device=device)
        common = keys.key(seed, dispatch, -1, "transforms")
        state = tree.from_numpy(asked.state, str(device))
        every = self._every(pieces)
        given = v, own, key, torch.tensor(common, device=device), state
        decoded, codes, after, sums = replay.call(every, every, *given)
        if self.mask is not None:
            weight = torch.cat([weights[p.part][:, None].expand(-1, p.stop - p.start) for p in pieces], 1)
            if fixed := len(tree.values(sent)) - len(pieces):
                raise FailsAgain(
                    f"transforms: mask found, and {fixed} entries of {', '.join(names)} are no parameters: only those are masked"
                )
            decoded = self.mask.hide(codes.to(torch.int64) * weight, clients, asked.everyone, common)
        fixed = tree.nbytes(sent) - sum(len(clients) * (p.stop - p.start) * p.dtype.itemsize for p in pieces)
        each = self._bytes_each(v.shape[1], v.dtype.itemsize * 8, pieces)
        nbytes = None if each is None else len(clients) * each + fixed
        return Encoded({**parts, **self._parts(sent, decoded, pieces)}, after, sums, names, nbytes)

    def _every(self, pieces: tuple[Piece, ...]) -> Callable[..., tuple[Tensor, Tensor, Tree, Tree]]:
        """Return `_one` for all clients of a call at once, for vectors of these pieces: a function of its own, so that it is recorded."""
        if pieces not in self._known:

            def every(v: Tensor, own: Tree, key: Tensor, common: Tensor, state: Tree) -> Any:
                return torch.vmap(lambda v, own, key: self._one(v, own, key, common, state, pieces))(v, own, key)

            self._known[pieces] = every
        return self._known[pieces]

    def _one(
        self, v: Tensor, own: Tree, key: Tensor, common: Tensor, state: Tree, pieces: tuple[Piece, ...]
    ) -> tuple[Tensor, Tensor, Tree, Tree]:
        """Return of one client's vector (what the server decodes, the last transform's numbers, its new state, its sums)."""
        after: dict[str, Tree] = {**own}
        sums: dict[str, Tree] = {}

        def onward(number: int, v: Tensor) -> tuple[Tensor, Tensor]:
            if number == len(self.steps):
                return v, v
            t = self.steps[number]
            at = At(key, common, number + 1, state.get(t.kind, {}), pieces)
            mine = own.get(t.kind, {})
            given = v + _joined(mine["left"], pieces) if t.feedback else v
            sent, beside, new = t.encode(given, mine, at)
            if t.adds:
                sums[t.kind] = {n: beside[n] for n in t.adds}
            back, last = onward(number + 1, sent)
            out = t.decode(back, beside, given, at)
            if t.feedback:
                new = {**new, "left": {**mine["left"], **_by_part(given - out, pieces)}}
            if mine:
                after[t.kind] = {**mine, **new}
            return out, last

        out, last = onward(0, v)
        if self._bounds_again:  # what the server decodes it clips again: the noise is for this norm
            assert self.gaussian is not None
            bound = state[self.gaussian.kind]["bound"].to(out.dtype)
            out = out * (bound / torch.maximum(torch.linalg.vector_norm(out), bound))
        return out, last, after, sums

    def _bytes_each(self, n: int, bits: int, pieces: Sequence[Piece]) -> int | None:
        """Return the bytes that one client's vector of n numbers costs, None where no transform changes that."""
        beside, found = 0, (n, bits)
        for t in self.all:
            *found, more = t.size(*found, pieces)  # type: ignore[assignment]
            beside += more
        return None if (n, bits, 0) == (*found, beside) else math.ceil((found[0] * found[1] + beside) / 8)

    # -- parts and vectors ---------------------------------------------------------------------------------------------

    def _pieces(self, parts: Tree, lead: int) -> tuple[Piece, ...]:
        """Return where the tensors of update parts are in the vector; lead: axes before theirs."""
        found: list[Piece] = []
        for name, part in parts.items():
            for path, x in tree.leaves(part):
                if x.is_floating_point() and not (path and path[-1] in self.task.buffers):
                    start, shape = found[-1].stop if found else 0, tuple(x.shape[lead:])
                    found.append(Piece(name, path, shape, x.dtype, start, start + math.prod(shape)))
        return tuple(found)

    def _vectors(self, parts: Tree, pieces: Sequence[Piece], rows: int) -> Tensor:
        """Return the vectors of c clients, (c, d), in the widest of the pieces' types, at least float32."""
        dtype = torch.float32
        for p in pieces:
            dtype = torch.promote_types(dtype, p.dtype)
        return torch.cat([_at(parts[p.part], p.path).reshape(rows, -1).to(dtype) for p in pieces], 1)

    def _parts(self, parts: Tree, v: Tensor, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Return update parts with the vectors' numbers in their places; whole numbers stay whole."""
        new = {
            (p.part, p.path): v[:, p.start : p.stop]
            .reshape(-1, *p.shape)
            .to(p.dtype if v.is_floating_point() else v.dtype)
            for p in pieces
        }
        return {n: _with(part, n, (), new) for n, part in parts.items()}

    # -- at the server -------------------------------------------------------------------------------------------------

    def rule(self, visit: str, folds: tuple[Fold, ...], keep: Sequence[str], state: Tree) -> tuple[Fold, ...]:
        """Return the folds of an ask as transforms need them. FailsAgain where an ask cannot be had under them, or would spend more
        privacy than there is."""
        released = [f for f in folds if f.part in self.updates]
        if self._accounts and (released or not self.central):
            self._check_budget(int(state[PRIVACY]["releases"]) + 1)
        if not released:
            return folds
        if self.sums_only:
            self._refuse(visit, released, keep)
        if self.central:
            folds = tuple(
                f._replace(weight="one", denominator=self._clients if f.kind == "mean" else None)
                if f in released
                else f
                for f in folds
            )
        if self.mask is not None:
            folds = tuple(f._replace(exact=True) if f.part in self.updates else f for f in folds)
        return (*folds, total(SUMS, weight="one")) if self.adds else folds

    def _refuse(self, visit: str, released: Sequence[Fold], keep: Sequence[str]) -> None:
        which = "mask" if self.mask is not None else "gaussian"
        where = f"transforms: {which} found, under which the server sees sums of updates only, but"
        if kept := sorted(set(keep) & set(self.updates)):
            raise FailsAgain(f"{where} {visit} is asked to keep those of single clients ({', '.join(kept)})")
        for f in released:
            if f.by is not None:
                raise FailsAgain(
                    f"{where} part {f.part!r} of {visit} is folded by {f.by!r}, which says who is in which sum"
                )
            if f.weight not in ("one", "examples"):
                raise FailsAgain(
                    f"{where} part {f.part!r} of {visit} is weighted by {f.weight!r}; allowed: one, examples"
                )

    def refuse_single(self, visit: Any, unfolded: Sequence[str]) -> None:
        """Raise FailsAgain where single updates would reach a server that must see their sums only."""
        if self.sums_only and (seen := sorted(set(unfolded) & set(self.updates))):
            which = "mask" if self.mask is not None else "gaussian"
            raise FailsAgain(
                f"transforms: {which} found, under which the server sees sums of updates only, but {visit} sends "
                f"{', '.join(seen)} unfolded"
            )

    def open(
        self, folds: Sequence[Fold], merged: Folded, replied: Sequence[int], asked: Sequence[int], dispatch: int
    ) -> Folded:
        """Return an ask's merged folds, the masked sums without their masks and in float64."""
        exact = {f.part for f in folds if f.exact}
        if self.mask is None or not exact:
            return merged
        if len(replied) < self.mask.least(len(asked)):
            raise RunFailed(
                f"transforms: mask found, {len(replied)} of {len(asked)} clients replied, and the sum is opened from "
                f"{self.mask.least(len(asked))} on (threshold: {self.mask.settings.threshold:g})"
            )
        parts = [n for n in self.updates if n in exact and n in merged]
        if not parts:
            return merged
        (quantise,) = (t for t in self.steps if isinstance(t, Quantise))
        weight = max(merged[n][""]["weight"] for n in parts)
        if (needed := self.mask.needs_bits(quantise.levels * weight)) > self.mask.settings.bits:
            raise FailsAgain(
                f"transforms: {self.mask.settings.bits} bits of mask found, sums of this round need {needed} "
                f"({quantise.settings.bits} bits of quantise, weights that sum to {weight:g})"
            )
        totals = {n: merged[n][""]["total"] for n in parts}
        common = keys.key(self.config.seed, dispatch, -1, "transforms")
        opened = self.mask.open(tree.flatten(totals), replied, asked, common)
        values = iter(opened.split([x.numel() for x in tree.values(totals)]))
        step = quantise.settings.range / quantise.levels
        made = tree.map(lambda x: next(values).reshape(x.shape).to(torch.float64) * step, totals)
        return {**merged, **{n: {"": {**merged[n][""], "total": made[n]}} for n in parts}}

    def finish(self, folds: Sequence[Fold], folded: dict[str, Any], state: Tree, replies: int, dispatch: int) -> Tree:
        """Let the transforms finish what an ask's folds gave, in place; returns the new state."""
        sums = folded.pop(SUMS, {})
        released = [f for f in folds if f.part in self.updates]
        after = dict(state)
        if self._accounts and (
            released or not self.central
        ):  # of local noise each ask counts, whatever its replies hold
            after[PRIVACY] = self._one_more(state[PRIVACY], dispatch)
        if not released:
            return after
        mine = {f.part: folded[f.part] for f in released if f.part in folded}
        if self.mask is not None:
            mine = tree.map(lambda x: x.to(self.task.dtype), mine)
        divisors = {f.part: (f.denominator or 1.0) if f.kind == "mean" else 1.0 for f in released}
        bound = None if self.clip is None else float(state[self.clip.kind]["norm"])
        noise = self.clip.count_noise(self._clients, self.central) if self.clip is not None else 0.0
        for number, t in enumerate(self.all):
            got = Collected(
                mine,
                divisors,
                sums.get(t.kind) or dict.fromkeys(t.adds, 0.0),
                self._clients,
                replies,
                bound,
                self.central,
                noise,
            )
            key = keys.key(self.config.seed, dispatch, -1, f"transforms {number}")
            mine, new = t.finish(got, state.get(t.kind, {}), key)
            if t.kind in state:
                after[t.kind] = new
        folded.update(mine)
        return after

    def row(self, state: Tree, spent: bool) -> dict[str, float]:
        """Return what a round's row says; spent: whether what has been released is accounted for in it."""
        out: dict[str, float] = {}
        for t in self.all:
            out |= t.logs(state.get(t.kind, {}))
        if spent and self._accounts:
            assert self.gaussian is not None
            out["privacy/epsilon"] = self.gaussian.epsilon(int(state[PRIVACY]["releases"]))
        return out

    @property
    def _accounts(self) -> bool:
        return self.gaussian is not None and self.gaussian.accountant() is not None

    @property
    def _in_turn(self) -> bool:
        """Whether epsilon is of clients that come in turn, once in so many rounds."""
        return self.gaussian is not None and self.gaussian.settings.bands > 1

    def _one_more(self, released: Tree, dispatch: int) -> Tree:
        """Return what has been released after an ask. FailsAgain where a client would be in two releases of a round and may not be."""
        more = {"releases": released["releases"] + 1}
        if not self._in_turn:
            return more
        round = dispatch >> 20  # as `Dispatch.ask` numbers asks
        if int(released["round"]) == round:
            raise FailsAgain(
                "transforms: gaussian.bands found, whose epsilon is of one sum a round, and the method releases more; allowed: bands 1, "
                "or accountant: none"
            )
        return {**more, "round": torch.tensor(round)}

    @property
    def _clients(self) -> float:
        """The clients of a round in expectation, q N."""
        return float(self.config.per_round())

    def _check_budget(self, releases: int) -> None:
        """Raise FailsAgain where so many releases spend more than the budget. That one a round does not was checked before the start."""
        assert self.gaussian is not None
        budget = self.gaussian.settings.epsilon
        if budget is None or releases <= self.config.rounds:
            return
        if (spent := self.gaussian.epsilon(releases)) > budget:
            raise FailsAgain(
                f"transforms: gaussian.epsilon: {budget:g} found, and release {releases} would spend {spent:.4g}: the method "
                f"releases more than one sum a round; {releases - 1} are within it"
            )


def _only(found: Sequence[Transform], kind: type[Any]) -> Any:
    return next((t for t in found if isinstance(t, kind)), None)


def _joined(left: Tree, pieces: Sequence[Piece]) -> Tensor:
    """Return vectors by part as the one of the parts that are sent."""
    return torch.cat([left[part] for part in dict.fromkeys(p.part for p in pieces)])


def _by_part(v: Tensor, pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """Return a vector cut into those of its parts."""
    ends: dict[str, tuple[int, int]] = {}
    for p in pieces:
        ends[p.part] = (ends.get(p.part, (p.start, 0))[0], p.stop)
    return {part: v[start:stop] for part, (start, stop) in ends.items()}


def _at(t: Any, path: Sequence[str]) -> Any:
    for key in path:
        t = t[key]
    return t


def _with(t: Any, part: str, path: tuple[str, ...], new: Mapping[tuple[str, tuple[str, ...]], Tensor]) -> Any:
    """Return a tree with new leaves where there are some."""
    if isinstance(t, Mapping):
        return {n: _with(x, part, (*path, n), new) for n, x in t.items()}
    return new.get((part, path), t)
