"""A study's arms compared on each client's own test rows by paired bootstrap, seed by seed the same rows for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rayfed import partition
from rayfed.config.schema import Config
from rayfed.errors import ConfigError
from rayfed.report.bootstrap import paired_auroc
from rayfed.report.html import number
from rayfed.report.subject import load
from rayfed.served import Served

HEAD = ("client", "label", "arm", "AUROC", "of the first", "95 % of the difference", "p", "p reversed", "rows")


def lines(path: Path) -> list[list[str]]:
    """Return the comparison of each arm's served models with the first arm's, of the least seed that all have: HEAD, then a line for each
    client, label and arm. ConfigError where rows have no labels of 0 and 1, or no seed is done in two arms."""
    subject = load(path)
    done = {arm: {r.seed: r for r in runs} for arm, runs in subject.done.items() if runs}
    shared = sorted(set.intersection(*map(set, done.values()))) if len(done) > 1 else []
    if not shared:
        raise ConfigError(f"report: --bootstrap compares arms, and {path} has no seed that is done in two of them")
    runs = {arm: found[shared[0]] for arm, found in done.items()}
    configs = {arm: Config.from_dict(dict(run.config)) for arm, run in runs.items()}
    split = partition.build(next(iter(configs.values())))
    if split.form != "labels" and split.classes != 2:
        raise ConfigError(
            "report: --bootstrap found, and task.data has neither labels nor two classes; allowed: such data"
        )
    served = {arm: Served(run.path, configs[arm]) for arm, run in runs.items()}
    out = [list(HEAD)]
    for c in range(split.population):
        rows = split.test[c]
        if len(rows):
            truth = {n: np.asarray(a)[rows] for n, a in split.arrays.items()}
            answers = {arm: np.asarray(s.model(c)(truth["x"])) for arm, s in served.items()}
            out += _of_client(str(split.names[c]), truth["y"], answers, split.outputs)
    return out


def _of_client(
    client: str, y: np.ndarray, answers: Mapping[str, np.ndarray], names: tuple[str, ...]
) -> list[list[str]]:
    """Return a client's lines; y (n, L), or (n,) of two classes, answers (n, L) or (n, 2) by arm."""
    labels = y if y.ndim == 2 else np.stack([y == 0, y == 1], 1).astype(int)
    first, *others = answers
    out = []
    for number_of, name in enumerate(names):
        if y.ndim == 1 and number_of == 0:
            continue  # of two classes the second says it all
        for arm in others:
            found = paired_auroc(labels[:, number_of], answers[arm][:, number_of], answers[first][:, number_of])
            cells: list[Any] = ["–"] * 5
            if found:
                low, high = (number(v, sign=True) for v in found.interval)
                cells = [
                    number(found.first),
                    number(found.second),
                    f"{low} to {high}",
                    number(found.p),
                    number(found.reverse),
                ]
            out.append([client, name, arm, *cells, str(len(y))])
    return out


def markdown(path: Path) -> str:
    """Return the comparison as a table in Markdown."""
    head, *body = lines(path)
    rows = [head, ["---"] * len(head), *body]
    table = "\n".join(f"| {' | '.join(r)} |" for r in rows)
    return (
        f"{table}\n\nAUROC of what each client is served on its own test rows, against the first arm's, by 1,000 lists of rows that are "
        "the same for both. p: the share of lists in which the arm is not higher than the first one; not corrected for their number.\n"
    )
