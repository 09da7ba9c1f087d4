"""`rayfed audit`: how much a run with canaries lets one see of who took part, beside the epsilon that it reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayfed import attack, methods, tree
from rayfed.attack import canary
from rayfed.config.load import load_config
from rayfed.config.schema import Config
from rayfed.engine.attackers import Attackers
from rayfed.errors import ConfigError
from rayfed.lazy import torch
from rayfed.privacy.audit import lower_bound
from rayfed.served import Served, list_models, load_model
from rayfed.storage.run_folder import read_metrics


@dataclass(frozen=True)
class Audit:
    """What was found.

    canaries, inside: how many there were, and took part; guesses, right; least: the epsilon that was spent at least, at `delta` and
    with `confidence`; claimed: the run's `privacy/epsilon`, None without one.
    """

    canaries: int
    inside: int
    guesses: int
    right: int
    delta: float
    confidence: float
    least: float
    claimed: float | None

    @property
    def broken(self) -> bool:
        """Return whether more was shown than the run claims to have spent."""
        return self.claimed is not None and self.least > self.claimed

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "broken": self.broken}

    def text(self) -> str:
        """Return it in sentences."""
        said = [
            f"{self.canaries} canaries, {self.inside} of them in the run; {self.guesses} guesses, {self.right} right",
            f"epsilon is at least {self.least:.3g} at delta {self.delta:g}, with {self.confidence:.0%} confidence",
        ]
        if self.claimed is None:
            return "\n".join([*said, "the run reports no epsilon"])
        said.append(f"the run reports {self.claimed:.4g}")
        if self.broken:
            said.append(
                "MORE WAS SHOWN THAN IS CLAIMED: noise, clipping or accounting is wrong (or luck, of which the confidence speaks)"
            )
        return "\n".join(said)


def audit(path: Path, guesses: int | None = None, confidence: float = 0.95) -> Audit:
    """Return what the final model of a run shows of its canaries' coins.

    Arguments:
        path: of a run that has ended, whose config has an attack of kind `canary`.
        guesses: how many canaries are guessed, the clearest ones; null for all. Chosen before the results are seen.
        confidence: of the bound.

    A canary's score is <x_T - x_0, g_i>, x the global model: of noise of its own for each release, and one direction all along, nothing
    else in the models tells more. ConfigError with what is wrong.
    """
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"audit: {path} is not a run folder; of a study, name the run: STUDY/ARM/seed-0")
    config = load_config(path / "config.yaml")
    assert isinstance(config, Config)
    method = methods.get(config.method.name)
    at = next((i for i, a in enumerate(attack.of(config)) if isinstance(a, canary.Canary)), None)
    parts = [n for n, p in method.wire.up.items() if p.update]
    problems = []
    if at is None:
        problems.append("audit: the run has no canaries; needed: attacks: [{kind: canary, clients: ...}]")
    if method.universal is None or len(parts) != 1:
        problems.append(f"audit: {config.method.name} found; allowed: methods of one global model and one update")
    if not 0 < confidence < 1:
        problems.append(f"--confidence: {confidence:g} found, allowed: between 0 and 1")
    if "model" not in list_models(path):
        problems.append(f"audit: {path} has no final model; rayfed resume {path}")
    if problems:
        raise ConfigError(problems)
    assert at is not None
    made = attack.of(config)[at]
    ids = attack.attackers(config, made)
    if guesses is not None and not 0 < guesses <= len(ids):
        raise ConfigError(f"--guesses: {guesses} found, allowed: 1 to {len(ids)}, the canaries")
    inside, scores = _scores(Served(path, config), at, ids, parts[0], load_model(path, config, "model"))
    number = len(ids) if guesses is None else guesses
    right = _right(inside, scores, number)
    delta = next((float(t.options.get("delta", 1e-5)) for t in config.transforms if t.kind == "gaussian"), 0.0)
    rows = read_metrics(path).to_pylist()
    claimed = next((r["privacy/epsilon"] for r in reversed(rows) if r.get("privacy/epsilon") is not None), None)
    least = lower_bound(len(ids), number, right, delta, confidence)
    return Audit(len(ids), int(inside.sum()), number, right, delta, confidence, least, claimed)


def _scores(served: Served, at: int, ids: np.ndarray, part: str, final: tree.Tree) -> tuple[np.ndarray, np.ndarray]:
    """Return each canary's coin, (m,) bool, and how far the model moved along its direction, (m,)."""
    task = served.task
    attackers = Attackers(served.config, served.method, task)
    moved = tree.without(tree.sub({n: final[n].to(p) for n, p in task.initial.items()}, task.initial), task.buffers)
    inside, scores = [], []
    for client in ids.tolist():
        key = torch.tensor(attackers.key(at, client, part, 0))
        inside.append(bool(canary.is_in(key)))
        scores.append(float(tree.dot(moved, canary.direction(moved, key))))
    return np.array(inside), np.array(scores)


def _right(inside: np.ndarray, scores: np.ndarray, guesses: int) -> int:
    """Return how many of so many guesses are right: between the means of the higher and of the lower half lies what divides
    "in" from "out", and those farthest from it are guessed."""
    ordered = np.sort(scores)[::-1]
    half = max(1, len(ordered) // 2)
    middle = (ordered[:half].mean() + ordered[half:].mean()) / 2 if len(ordered) > 1 else 0.0
    surest = np.argsort(-np.abs(scores - middle), kind="stable")[:guesses]
    return int(((scores > middle) == inside)[surest].sum())
