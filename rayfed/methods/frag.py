"""FRAG: parties search each other's vectors by encrypted queries, and only who asks learns how near they are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Wire, keys, tensor, visit
from rayfed.config import unread
from rayfed.config.schema import Need
from rayfed.lazy import F, torch
from rayfed.methods._bases import encryption
from rayfed.methods._bases.encryption import Packing, Paillier
from rayfed.visits import Phase, Visit, whole

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation

ALONE = "encryption computes with whole numbers of hundreds of digits, or in a library that knows no tensors"
BYTES = tensor("A", "B", "bytes", dtype="uint8")


class FRAG(Method):
    """Zhao 2024, "FRAG: Toward Federated Vector Database Management for Collaborative and Secure Retrieval-Augmented Generation"
    (2410.13272); no code is known, and steps and formulas are read out of its abstract and summaries.

    Party j holds vectors x_j,i, its training rows of length 1 as whole numbers round(2^bits x). Each round one party, all in turn, asks for
    the k nearest of all parties' vectors to each of its queries q, its test rows: 1. it sends Enc(q), entry by entry; 2. every party
    sends Enc(sum_t x_t q_t) of its vectors, from multiples and sums of ciphertexts, made unlinkable by a fresh zero; 3. scheme paillier:
    every party makes its part of the decryption of all of them with its share of the one private key, and only all parts together
    open them; scheme bfv (TenSEAL, which has no such shares): the key pair is the searcher's own; 4. the searcher alone opens the
    scores and keeps the k greatest. Scores are exact whole numbers: the ranking is that of plain search but for what rounding to
    `bits` makes equal.
    No model is trained; the one that is scored is the start, and says nothing. Down: queries, ciphertexts of the scores. Up: queries,
    ciphertexts of the scores, parts of the decryption; then which vectors are nearest, which is measured against plain search here.
    Kept at clients (parties): its share, or its key pair's secret. At the server: the public key of scheme paillier.
    """

    trains = False
    no_buffers = "trains no model"
    no_privacy = "trains no model, of whose steps examples could be clipped"
    no_rule = "has no updates"
    logs: ClassVar = {
        "search/recall": (
            "share of what was found that a search of the same whole numbers in the clear finds",
            "fraction",
        ),
        "search/recall_real": ("the same against a search of the vectors before they were rounded", "fraction"),
        "search/hit": ("share of queries whose nearest vector is of their class", "fraction"),
        "search/own_hit": ("the same among the searcher's own vectors alone", "fraction"),
    }

    class Settings(MethodSettings):
        needs: ClassVar = {"key_bits": (Need("scheme", ("paillier",)),)}

        scheme: Literal["paillier", "bfv", "none"] = Field(
            "paillier",
            description="paillier: in plain Python, one key in shares, of toy size, with a run's random numbers: protects nothing; "
            "bfv: TenSEAL (an extra), the searcher's own key; none: in the clear, to compare with.",
        )
        key_bits: int = Field(512, ge=128, description="Bits of Paillier's modulus.")
        k: int = Field(10, ge=1, description="Nearest vectors that a query asks for.")
        queries: int = Field(20, ge=1, description="Queries of a round, at most the searcher's test rows.")
        dims: int = Field(
            16, ge=0, description="Dimensions to which rows are projected, at random and alike for all; 0: as they are."
        )
        bits: int = Field(9, ge=2, le=20, description="Bits of the fixed point; with bfv at most 9.")

    wire: ClassVar[Wire] = Wire(
        down={
            "public": Part(tensor("bytes", dtype="uint8"), note="a public key, or public context"),
            "query": Part(BYTES, note="ciphertexts of the queries"),
            "scores": Part(tensor("n", "A", "B", "bytes", dtype="uint8"), note="ciphertexts of all parties' scores"),
            "parts": Part(
                tensor("N", "n", "A", "B", "bytes", dtype="uint8"), note="all parties' parts of the decryption"
            ),
        },
        up={
            "public": Part(tensor("bytes", dtype="uint8"), note="the searcher's public context (bfv)"),
            "query": Part(BYTES),
            "scores": Part(BYTES, note="ciphertexts of its scores"),
            "parts": Part(tensor("n", "A", "B", "bytes", dtype="uint8"), note="its part of the decryption"),
            "nearest": Part(tensor("Q", "k", dtype="int64"), note="party x rows + row, the nearest first; -1: none"),
        },
        keep={"secret": Part(tensor("bytes", dtype="uint8"), private=True, note="its share, or its secret key")},
        server={"model": Part(PARAMS, note="the start"), "public": Part(tensor("bytes", dtype="uint8"))},
    )

    def check(self, config: Config) -> list[str]:
        s, found = self.settings, []
        if s.scheme == "bfv" and (why := encryption.missing()):
            found.append(f"method.scheme: bfv found, and {why}; allowed: paillier, none")
        if s.scheme == "bfv" and s.bits > 9:
            found.append(f"method.bits: {s.bits} found, allowed with method.scheme: bfv: at most 9")
        if s.scheme == "paillier" and Packing.of(s.bits, s.key_bits).many < 1:
            found.append(f"method.key_bits: {s.key_bits} found, no score of {2 * s.bits + 3} bits fits; allowed: more")
        for name, value, plain in (
            ("clip", config.local.clip, None),
            ("label_smoothing", config.local.label_smoothing, 0.0),
        ):
            if value != plain:
                found.append(
                    unread.sentence(f"local.{name}", value, "method.name", config.method.name, str(plain or "null"))
                )
        return found

    def fits(self, federation: Federation) -> list[str]:
        n, found = federation.population, []
        if federation.form != "classes" or not np.issubdtype(federation.arrays["x"].dtype, np.floating):
            return ["method.name: frag found, which searches rows of numbers with a class each; allowed: such data"]
        most = int(federation.train.sizes()[:n].max())
        if self.settings.scheme == "bfv" and most > encryption.DEGREE:
            found.append(f"method.scheme: bfv found, a party holds {most:,} vectors; allowed: {encryption.DEGREE:,}")
        if not federation.test.sizes()[:n].any():
            found.append(
                "method.name: frag found, and no party has test rows to search with; allowed: federation.split.test"
            )
        return found

    def _dealt(self, parties: int) -> tuple[Paillier, list[int]]:
        return encryption.dealt(
            keys.key(self.config.seed, 0, -1, "the dealer of keys"), parties, self.settings.key_bits
        )

    def init(self, task: Task, key: int) -> Tree:
        public = np.zeros(1, np.uint8)
        if self.settings.scheme == "paillier":
            public = encryption.as_bytes(self._dealt(1)[0].n, self._modulus_bytes)
        return {"model": task.init_params(key), "public": torch.from_numpy(public.copy())}

    @property
    def _modulus_bytes(self) -> int:
        return (int(self.settings.key_bits) + 7) // 8

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        s = self.settings
        if s.scheme == "paillier" and client < task.population:
            share = self._dealt(task.population)[1][client]
            return {"secret": torch.from_numpy(encryption.as_bytes(share, 2 * self._modulus_bytes).copy())}
        size = {"paillier": 2 * self._modulus_bytes, "bfv": encryption.SECRET}.get(s.scheme, 1)
        return {"secret": torch.zeros(size, dtype=torch.uint8)}

    def unit(self, x: Tensor) -> Tensor:
        """Return rows as vectors of length 1, (n, d) float64, projected at random and alike for all."""
        flat = x.reshape(len(x), -1).double().cpu()
        if self.settings.dims:
            rng = keys.numpy(keys.key(self.config.seed, 0, -1, "projection"))
            size = min(self.settings.dims, flat.shape[1])
            flat = flat @ torch.from_numpy(np.linalg.qr(rng.standard_normal((flat.shape[1], size)))[0])
        return F.normalize(flat, dim=1)

    def vectors(self, x: Tensor) -> np.ndarray:
        """Return rows as whole numbers (n, d), of length 2^bits before rounding."""
        found: np.ndarray = (self.unit(x) * 2**self.settings.bits).round().long().numpy()
        return found

    def _key(self, public: Tensor) -> tuple[Paillier, Packing]:
        return Paillier(encryption.as_numbers(public.numpy())), Packing.of(self.settings.bits, self.settings.key_bits)

    @visit
    def search(self, task: Task, queries: int = 1, rows: int = 1, size: int = 1) -> Visit:
        """Encrypt the first queries. rows: of the largest store; size: d."""
        s, bfv = self.settings, self.settings.scheme == "bfv"
        blocks = -(-queries // max(1, encryption.DEGREE // rows)) if bfv else queries
        width = {"paillier": 2 * self._modulus_bytes, "bfv": encryption.CIPHER}.get(s.scheme, 8)

        def begin(client: ClientContext) -> Tree:
            byte = torch.uint8
            made = {"public": client.shared["public"], "secret": client.own["secret"]}
            if bfv:
                made["public"] = torch.zeros(encryption.PUBLIC, dtype=byte)
            return {**made, "query": torch.zeros((blocks, size, width), dtype=byte)}

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            q = self.vectors(batch["x"][batch["w"] > 0][:queries])
            encryption.check_range(q, s.bits)
            if bfv:
                public, secret = encryption.new_pair()
                found = encryption.bfv_encrypt(public, q, rows)
                return {
                    n: torch.from_numpy(a.copy()) for n, a in (("public", public), ("secret", secret), ("query", found))
                }
            if s.scheme == "none":
                return {**carry, "query": torch.from_numpy(encryption.clear_bytes(q).copy())}
            found = encryption.encrypt(self._key(carry["public"])[0], q, random.Random(int(key)))
            return {**carry, "query": torch.from_numpy(found.copy())}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"public": carry["public"], "query": carry["query"]}, {"secret": carry["secret"]}

        return Visit(begin, [Phase(whole("test"), step, counts=False)], end, ALONE)

    @visit
    def score(self, task: Task, queries: int = 1, rows: int = 1) -> Visit:
        """Compute the encrypted scores of a party's vectors."""
        s = self.settings
        packing = Packing.of(s.bits, s.key_bits)
        shape = {
            "paillier": (queries, packing.ciphertexts(rows), 2 * self._modulus_bytes),
            "bfv": (-(-queries // max(1, encryption.DEGREE // rows)), 1, encryption.CIPHER),
            "none": (queries, rows, 8),
        }[s.scheme]

        def begin(client: ClientContext) -> Tree:
            return {**client.shared, "scores": torch.zeros(shape, dtype=torch.uint8)}

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            x = self.vectors(batch["x"][batch["w"] > 0])
            encryption.check_range(x, s.bits)
            public, query = (carry[n].numpy() for n in ("public", "query"))
            if s.scheme == "none":
                plain = np.full((queries, rows), -(2 ** (2 * s.bits + 2)))
                plain[:, : len(x)] = encryption.clear_numbers(query) @ x.T
                found = encryption.clear_bytes(plain)
            elif s.scheme == "bfv":
                found = encryption.bfv_score(public, query, x, rows, queries)
            else:
                found = encryption.score(*self._key(carry["public"]), query, _filled(x, rows), random.Random(int(key)))
            return {**carry, "scores": torch.from_numpy(found.copy())}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"scores": carry["scores"]}, client.own

        return Visit(begin, [Phase(whole(), step, counts=False)], end, ALONE)

    @visit
    def part(self, task: Task) -> Visit:
        """Make a party's part of the decryption of everybody's scores."""

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            key, share = self._key(client.shared["public"])[0], encryption.as_numbers(client.own["secret"].numpy())
            found = encryption.partials(key, client.shared["scores"].numpy(), share)
            return {"parts": torch.from_numpy(found.copy())}, client.own

        return Visit(lambda client: {}, (), end, ALONE)

    @visit
    def open(self, task: Task, queries: int = 1, rows: int = 1, sizes: tuple[int, ...] = ()) -> Visit:
        """Open the scores, and name the nearest vectors. sizes: vectors of each party."""
        s = self.settings

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent = client.mine["scores"].numpy()
            if s.scheme == "none":
                found = encryption.clear_numbers(sent)
            elif s.scheme == "bfv":
                found = np.stack([encryption.bfv_open(client.own["secret"].numpy(), c, rows, queries) for c in sent])
            else:
                found = encryption.combined(*self._key(client.shared["public"]), client.mine["parts"].numpy(), rows)
            found = np.where(np.arange(rows) < np.array(sizes)[:, None, None], found, np.iinfo(np.int64).min)
            return {"nearest": torch.from_numpy(nearest(np.concatenate(list(found), 1), s.k))}, client.own

        return Visit(lambda client: {}, (), end, ALONE)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, f, to = self.settings, fed.federation, fed.sample()
        askers = [c for c in to if len(f.test[c])]
        if not askers:
            return state
        asker = askers[(fed.round - 1) % len(askers)]
        holders = tuple(range(fed.population)) if s.scheme == "paillier" else to
        here = {"queries": min(s.queries, len(f.test[asker])), "rows": int(f.train.sizes()[list(to)].max())}
        size = int(np.prod(f.input_shape))
        asked = fed.ask(
            self.search.with_(**here, size=min(s.dims or size, size)), (asker,), shared={"public": state["public"]}
        )
        if not asked.ids:
            return state
        shared = {n: asked.stacked(n)[0] for n in ("public", "query")}
        got = fed.ask(self.score.with_(**here), to, shared=shared)
        if not got.ids:
            return state
        scores = got.stacked("scores")
        mine, known = {"scores": scores}, {"public": shared["public"]}
        if s.scheme == "paillier":  # the key is everybody's: who scores nothing in this round has a share, too
            parts = fed.ask(self.part, holders, shared={**known, "scores": scores})
            if len(parts) < len(holders):
                return state  # without all shares nothing is opened
            mine["parts"] = parts.stacked("parts")
        sizes = tuple(int(n) for n in f.train.sizes()[got.ids])
        opened = fed.ask(self.open.with_(**here, sizes=sizes), (asker,), shared=known, mine={asker: mine})
        if opened.ids:
            self._judge(fed, asker, got.ids, opened.stacked("nearest")[0].numpy(), **here)
        return state

    def _judge(self, fed: Fed, asker: int, parties: Sequence[int], found: np.ndarray, queries: int, rows: int) -> None:
        """Log how what was found compares with a plain search in the clear, which a deployment could not do."""
        f = fed.federation
        x, y = f.arrays["x"], f.arrays["y"]
        of = np.concatenate([i * rows + np.arange(len(f.train[c])) for i, c in enumerate(parties)])
        at = np.concatenate([f.train[c] for c in parties])
        asked, mine = f.test[asker][:queries], f.train[asker]
        k = min(self.settings.k, len(at))
        place = {int(n): i for i, n in enumerate(of)}
        rank = np.array([[place[int(n)] for n in row[:k]] for row in found])
        for name, as_vectors in (("recall", self.vectors), ("recall_real", lambda rows: self.unit(rows).numpy())):
            q, store, own = (as_vectors(torch.as_tensor(x[r])) for r in (asked, at, mine))
            exact = q @ store.T
            least = np.sort(exact, 1)[:, -k]
            fed.log(f"search/{name}", float((np.take_along_axis(exact, rank, 1) >= least[:, None]).mean()), queries)
        fed.log("search/hit", float((y[at[rank[:, 0]]] == y[asked]).mean()), queries)
        fed.log("search/own_hit", float((y[mine[(q @ own.T).argmax(1)]] == y[asked]).mean()), queries)


def nearest(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the k greatest scores (Q, n), the greatest first, of equal ones the lowest place; -1: there are fewer."""
    order = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :k]
    there = np.take_along_axis(scores, order, 1) > np.iinfo(np.int64).min
    out = np.where(there, order, -1)
    return np.pad(out, ((0, 0), (0, k - out.shape[1])), constant_values=-1)


def _filled(x: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((rows - len(x), x.shape[1]), x.dtype)])
