"""The data split of a run (who holds what), made again from its config for a picture."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed.errors import RayfedError
from rayfed.report.subject import RunRecord

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES, MAX_EXAMPLES = 50_000_000, 200_000  # of data that may be loaded again for a picture
TOO_LARGE = "the data is too large to be split again for a picture"


class DataSplit(NamedTuple):
    """Who holds what: counts (n, C) training examples per client and class; group (n,) planted group or -1; unseen (n,) bool."""

    counts: np.ndarray
    group: np.ndarray
    unseen: np.ndarray
    label_names: tuple[str, ...]

    def text(self) -> str:
        """Return sizes and classes in one sentence."""
        import numpy as np

        sizes, classes = self.counts.sum(1), (self.counts > 0).sum(1)
        return (
            f"{len(sizes):,} clients hold {sizes.sum():,} training examples: {sizes.min():,} to {sizes.max():,}, median "
            f"{np.median(sizes):g}; a client has {classes.mean():.1f} of {self.counts.shape[1]} classes on average."
        )


def data_split(run: RunRecord) -> DataSplit | str:
    """Return a run's split, made again from its config; else, as the end of a sentence, why that is not done.

    The numbers of examples in the run's client rows must agree with it.
    """
    config = {k: v for k, v in run.config.items() if k != "storage"} | {"seed": run.seed}
    split = _split(json.dumps(config, sort_keys=True, default=str))
    if isinstance(split, str):
        return split
    for row in run.clients:
        client, examples = row.get("client"), row.get("examples")
        if not isinstance(client, int) or examples is None:
            continue
        if client >= len(split.counts) or split.counts[client].sum() != examples:
            return "the data is not what it was when the run was made"
    return split


@functools.lru_cache(maxsize=8)
def _split(config: str) -> DataSplit | str:
    import numpy as np
    from pydantic import ValidationError

    from rayfed import partition
    from rayfed.config.schema import Config

    try:
        c = Config.from_dict(json.loads(config))
        if reason := _too_expensive(c.task.data.name, c.task.data.options):
            return reason
        federation = partition.build(c)
    except (RayfedError, ValidationError, OSError, ValueError) as error:
        return f"the split cannot be made again here ({str(error).splitlines()[0]})"
    if federation.class_counts.shape[1] < 2:
        return "the data has no classes"
    unseen = np.arange(federation.clients) >= federation.population
    return DataSplit(federation.class_counts, federation.group, unseen, federation.label_names)


def _too_expensive(name: str, options: Mapping[str, Any]) -> str | None:
    """Return why data should not be loaded only for a picture; None if it is small and on this machine."""
    kind, _, rest = name.partition(":")
    if kind == "digits":
        return None
    if kind == "synthetic":
        return TOO_LARGE if int(options.get("examples", 0)) > MAX_EXAMPLES else None
    if kind == "parquet":
        files = list(Path(rest).glob("*.parquet"))
        if not files:
            return f"its data, {rest}, is not here"
        return TOO_LARGE if sum(f.stat().st_size for f in files) > MAX_BYTES else None
    return f"data from {name} is not loaded again for a picture"
