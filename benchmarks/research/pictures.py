"""The pictures of docs/universal-expert.md, written into docs/pictures.

    python benchmarks/research/pictures.py drawn features clusters      (about five minutes on one core; RAYFED_SHELF=DIR for clusters)
    rayfed run benchmarks/research/curves.yaml
    python benchmarks/research/pictures.py curves=runs/curves-...       (of the study that the line before made)

All of them show one run each of an exploring seed; nothing here is used by a method.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from teacher import rounds

from rayfed import tree
from rayfed.config.schema import Config, Study
from rayfed.distill import client_generators, generator, statistics
from rayfed.fed import Fed
from rayfed.launch.preflight import load_request
from rayfed.report.picture import line_style, write_figure
from rayfed.report.statistics import mean_sd
from rayfed.report.subject import load_study

HERE = Path(__file__).resolve().parent
PICTURES = HERE.parents[1] / "docs" / "pictures"
SEED = 0
DPI = 100
KINDS = {  # arm of curves.yaml -> what it is called
    "fedavg": "FedAvg",
    "generator": "DisUE, generated images",
    "features": "DisUE, drawn features",
    "pixels": "DisUE, drawn images",
}
GROUPS = {
    "rotation_auto": "rotation",
    "permutation_auto": "permuted labels",
    "classes_auto": "classes",
    "domain_auto": "domains",
}


def arm(study: str, name: str) -> Config:
    """Return an arm of a study beside this file, with the seed of the pictures."""
    request: Any = load_request(HERE / f"{study}.yaml")
    assert isinstance(request, Study)
    return request.arms[name].model_copy(update={"seed": SEED})


def after(config: Config, wanted: tuple[int, ...]) -> tuple[dict[int, tree.Tree], Fed]:
    """Return the server's state after some rounds, and the federation."""
    with torch.no_grad():
        run = list(rounds(config.model_copy(update={"rounds": max(wanted)})))
    return {r: state for r, state, _ in run if r in wanted}, run[-1][2]


def training_rows(fed: Fed) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels of all clients' training rows."""
    rows = fed.federation.train.rows
    x, y = (torch.as_tensor(fed.federation.arrays[n][rows]) for n in ("x", "y"))
    return x, y


def gaussians(
    fed: Fed, space: statistics.Space, model: tree.Tree, covariance: statistics.Covariance, shrink: float
) -> statistics.Gaussians:
    """Return what the server knows after all clients told their sums."""
    x, y = training_rows(fed)
    z = space.place(model, x)
    of_class = torch.nn.functional.one_hot(y, fed.task.classes).to(z.dtype)
    squares = of_class.T @ (z * z) if covariance == "diag" else (of_class.T[:, :, None] * z).mT @ z
    return statistics.gaussians([of_class.sum(0), of_class.T @ z, squares], covariance, shrink)


def drawn() -> None:
    """What the student is shown: a picture of each class, of each kind of inputs."""
    generated, fed = after(arm("inputs", "generator"), (10, 40))
    own, _ = after(arm("inputs", "client_generators"), (1,))
    classes, shape = fed.task.classes, fed.task.input_shape
    y, rng = torch.arange(classes), torch.Generator().manual_seed(SEED)
    x, labels = training_rows(fed)
    settings = fed.method.settings

    def made(state: tree.Tree) -> torch.Tensor:
        z = torch.randn(classes, settings.noise, generator=rng)
        return generator.generate(state["generator"]["g"], z, y, classes, shape)

    of_pixels = gaussians(fed, statistics.inputs(fed.task), {}, "full", 0.05)
    of_clients = client_generators.generators(own[1]["generators"], settings.noise, shape)
    kinds = {
        "real": torch.stack([x[labels == c][0] for c in y.tolist()]),
        "generator, round 10": made(generated[10]),
        "generator, round 40": made(generated[40]),
        "clients' generators": of_clients.draw(y, rng),
        "Gaussians of pixels": of_pixels.draw(y, rng),
    }
    figure = Figure(figsize=(7.2, 0.72 * len(kinds)), layout="constrained")
    for i, (kind, images) in enumerate(kinds.items()):
        for c in y.tolist():
            axis = figure.add_subplot(len(kinds), classes, i * classes + c + 1)
            axis.imshow(images[c].reshape(shape[-2:]).numpy(), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if c == 0:
                axis.set_ylabel(kind, rotation=0, ha="right", va="center", fontsize=8)
    save(figure, "drawn")


def features() -> None:
    """The average's features, real ones and what stands for them, along the first two principal axes of the real ones."""
    rng = torch.Generator().manual_seed(SEED)
    panels: list[tuple[str, np.ndarray, np.ndarray]] = []
    for name, title in (("features", "drawn from class Gaussians"), ("generator", "of generated images")):
        states, fed = after(arm("inputs", name), (20,))
        model, (x, y) = states[20]["model"], training_rows(fed)
        real = fed.task.features(model, x)
        axes = PCA(2).fit(real.numpy())
        if name == "features":
            stand_in = gaussians(fed, statistics.features(fed.task), model, "diag", 0.0).draw(y, rng).to(real.dtype)
        else:
            z = torch.randn(len(y), fed.method.settings.noise, generator=rng)
            images = generator.generate(states[20]["generator"]["g"], z, y, fed.task.classes, fed.task.input_shape)
            stand_in = fed.task.features(model, images)
        panels += [(f"real, arm {name}", axes.transform(real.numpy()), y.numpy())]
        panels += [(title, axes.transform(stand_in.numpy()), y.numpy())]
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex="row", sharey="row").ravel()
    for axis, (title, points, y) in zip(axes, panels, strict=True):
        axis.scatter(*points.T, c=y, cmap="tab10", s=3, alpha=0.6, linewidths=0)
        axis.set_title(title, fontsize=9)
        axis.set(xticks=[], yticks=[])
    save(figure, "features")


def clusters() -> None:
    """Each client's cluster over the rounds, as clusterer auto finds it."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots(1, len(GROUPS))
    for axis, (name, title) in zip(axes, GROUPS.items(), strict=True):
        states, fed = after(arm("found_groups", name), tuple(range(1, 21)))
        group = np.asarray(fed.federation.group[: fed.population])
        order = np.argsort(group, kind="stable")
        ids = np.stack([s["assignment"].numpy()[order] for s in states.values()], 1)
        axis.imshow(
            np.where(ids < 0, np.nan, ids % 10), cmap="tab10", vmin=0, vmax=9, aspect="auto", interpolation="nearest"
        )
        for edge in np.flatnonzero(np.diff(group[order])) + 0.5:
            axis.axhline(edge, color="black", linewidth=0.8)
        axis.set(title=title, xlabel="round", yticks=[], xticks=[0, 9, 19], xticklabels=[1, 10, 20])
    axes[0].set_ylabel("clients, by planted group")
    save(figure, "clusters")


def curves(study: Path) -> None:
    """Accuracy of the model for all over the rounds, mean over the seeds of a study of curves.yaml."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axis, arms = figure.subplots(), load_study(study).arms
    for i, (name, title) in enumerate(KINDS.items()):
        by_round: dict[int, list[float]] = {}
        for run in arms[name]:
            for r, v in run.series("accuracy/global"):
                by_round.setdefault(r, []).append(v)
        if not by_round:
            continue  # of a study that has not ended
        axis.plot([*by_round], [mean_sd(v)[0] for v in by_round.values()], label=title, **line_style(i))
    axis.set(xlabel="round", ylabel="accuracy/global")
    axis.grid(True, axis="y", alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
    save(figure, "curves")


def save(figure: Figure, name: str) -> None:
    """Write a picture in 64 colours, which a repository can keep."""
    from PIL import Image

    file = write_figure(figure, PICTURES / f"disue-{name}.png", dpi=DPI)
    with Image.open(file) as drawn:
        few = drawn.convert("RGB").quantize(64)
    few.save(file, optimize=True)
    print(file)


DRAW: dict[str, Callable[[], None]] = {"drawn": drawn, "features": features, "clusters": clusters}


def main(wanted: list[str]) -> None:
    torch.set_num_threads(1)
    for name in wanted or [*DRAW]:
        if name.startswith("curves="):
            curves(Path(name.partition("=")[2]))
        else:
            DRAW[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
