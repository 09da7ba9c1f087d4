"""What DisUE's teacher knows, and what its generator draws: the two tables of docs/universal-expert.md.

    python benchmarks/research/teacher.py            (about five minutes on one core)

The setting is that of when_it_helps.yaml; nothing here is used by a method, the test labels least of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neural_network import MLPClassifier

from rayfed import keys, partition, tree
from rayfed.config.schema import Config, Study
from rayfed.distill import ensemble, generator
from rayfed.engine.dispatch import Dispatch
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.fed import Fed
from rayfed.launch.preflight import load_request

STUDY = Path(__file__).parent / "when_it_helps.yaml"
ROUNDS = (1, 5, 10, 20, 40)


def rounds(config: Config) -> Iterator[tuple[int, tree.Tree, Fed]]:
    """(round, server state after it, federation)."""
    split, pool = partition.build(config), LocalPool()
    here = Resident(config, split, None, "cpu")
    pool.setup("research", config, split, None)
    dispatch = Dispatch(config, split, here.method, here.task, pool, "research")
    fed = Fed(config, split, here.method, here.task, dispatch)
    state = fed.method.init(fed.task, keys.key(config.seed, 0, -1, "init"))
    for r in range(1, config.rounds + 1):
        fed.begin(r)
        state = fed.method.round(state, fed, fed.task)
        dispatch.states.commit()
        yield r, state, fed


def teacher(state: tree.Tree, fed: Fed, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(experts' logits (K, n, C), their class weights (K, C), their class counts (K, C))."""
    ids = sorted(state["experts"], key=int)
    member = state["assignment"].numpy()
    held = fed.federation.class_counts[: fed.population]
    counts = torch.as_tensor(np.stack([held[member == int(k)].sum(0) for k in ids]))
    logits = torch.stack([fed.task.apply(state["experts"][k], x) for k in ids])
    return logits, ensemble.class_weights(counts), counts


def accuracy(scores: torch.Tensor, y: torch.Tensor) -> float:
    return float((scores.argmax(-1) == y).double().mean())


def what_it_knows(config: Config) -> dict[int, tuple[float, ...]]:
    """On the real test images, without any distillation: average, teacher with the label, teacher without it, experts' mean,
    experts on the classes they own."""
    out: dict[int, tuple[float, ...]] = {}
    for r, state, fed in rounds(config):
        if r in ROUNDS:
            rows = fed.federation.pooled_test
            x, y = (torch.as_tensor(fed.federation.arrays[n][rows]) for n in ("x", "y"))
            logits, alpha, counts = teacher(state, fed, x)
            own = [accuracy(z[counts[k][y] > 0], y[counts[k][y] > 0]) for k, z in enumerate(logits)]
            out[r] = (
                accuracy(fed.task.apply(state["model"], x), y),
                accuracy(ensemble.teacher(logits, alpha, y, "prob", 2.0), y),
                accuracy(ensemble.by_class(logits, alpha, 2.0), y),
                accuracy(torch.softmax(logits, -1).mean(0), y),
                float(np.mean(own)),
            )
    return out


def what_it_draws(config: Config) -> dict[int, tuple[float, ...]]:
    """Distilling in every round: how often the teacher, and a judge trained centrally on all training rows, recognise the label a
    generated image was drawn for; its distance to the nearest training image, in units of a test image's."""
    out: dict[int, tuple[float, ...]] = {}
    judge: Any = None
    for r, state, fed in rounds(config):
        if judge is None:
            flat = fed.federation.arrays["x"].reshape(len(fed.federation.arrays["y"]), -1)
            pool = fed.federation.pooled_test
            rest = np.setdiff1d(np.arange(len(flat)), pool)
            judge = MLPClassifier((64,), max_iter=600, random_state=0).fit(flat[rest], fed.federation.arrays["y"][rest])
            unit = nearest(flat[pool], flat[rest])
        if r in ROUNDS:
            rng = torch.Generator().manual_seed(r)
            y = torch.randint(0, fed.task.classes, (400,), generator=rng)
            z = torch.randn(400, config.method.options.get("noise", 32), generator=rng)
            x = generator.generate(state["generator"]["g"], z, y, fed.task.classes, fed.task.input_shape)
            logits, alpha, _ = teacher(state, fed, x)
            drawn = x.reshape(400, -1).numpy()
            out[r] = (
                accuracy(ensemble.teacher(logits, alpha, y, "prob", 2.0), y),
                float((judge.predict(drawn) == y.numpy()).mean()),
                nearest(drawn, flat[rest]) / unit,
            )
    return out


def nearest(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Euclidean distance from rows of a to their nearest row of b."""
    squares = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)[None]
    return float(np.sqrt(np.maximum(squares, 0).min(1)).mean())


def table(head: tuple[str, ...], per_seed: list[dict[int, tuple[float, ...]]]) -> None:
    print("| round | " + " | ".join(head) + " |\n" + "|---" * (len(head) + 1) + "|")
    for r in ROUNDS:
        values = np.array([found[r] for found in per_seed])
        cells = (f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(0), values.std(0, ddof=1), strict=True))
        print(f"| {r} | " + " | ".join(cells) + " |")


def main() -> None:
    study: Any = load_request(STUDY)
    assert isinstance(study, Study)
    torch.set_num_threads(1)

    def arm(name: str, seed: int, **method: Any) -> Config:
        config = study.arms[name].model_copy(update={"seed": seed})
        named = config.method.model_copy(update={"options": {**config.method.options, **method}})
        return config.model_copy(update={"method": named})

    with torch.no_grad():
        head: tuple[str, ...] = (
            "average",
            "teacher, with the label",
            "without",
            "mean of experts",
            "experts on own classes",
        )
        table(head, [what_it_knows(arm("until_12", s, distill=False)) for s in study.seeds])
    print()
    head = ("teacher sees the label", "judge sees the label", "distance to real images")
    table(head, [what_it_draws(arm("always", s)) for s in study.seeds])


if __name__ == "__main__":
    main()
