"""Labelled sets through the `datasets` library: `hf:NAME` from the hub or its cache, `hf:FOLDER` from disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, stratified, unknown_options
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rayfed.config import Named

OPTIONS = ("image", "label", "client", "domain", "features", "train", "test", "config")


def check(spec: Named) -> list[str]:
    where = spec.name.partition(":")[2]
    problems = unknown_options(spec, OPTIONS)
    if not where:
        problems.append("task.data: hf: needs a name or a folder, e.g. hf:ylecun/mnist")
    if where.startswith((".", "/", "~")) and not Path(where).expanduser().exists():
        problems.append(f"task.data: folder {where} does not exist")
    return problems


def load(spec: Named, seed: int) -> Dataset:
    """Splits `train` and `test` (a fifth of train where there is no test split)."""
    import datasets

    where, o = spec.name.partition(":")[2], spec.options
    path = Path(where).expanduser()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            found: Any = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path) if path.exists() else where, o.get("config"))
    except Exception as e:
        raise ConfigError(f"task.data: {spec.name} cannot be loaded: {type(e).__name__}: {e}") from None
    if not isinstance(found, dict):
        found = {"train": found}
    name = o.get("train", "train")
    if name not in found:
        raise ConfigError(
            f"task.data.train: {spec.name} has no split {name!r}{nearest(name, found)}; splits: {', '.join(found)}"
        )
    train = _part(found[name], o, spec.name)
    second = o.get("test", "test")
    label_names = getattr(found[name].features.get(o.get("label", "label")), "names", None)
    if isinstance(second, str) and second in found:
        test = _part(found[second], o, spec.name)
    else:
        mask = stratified(
            train.y, second if isinstance(second, float) else 0.2, keys.numpy(keys.key(0, 0, -1, "hf test rows"))
        )
        train, test = train.take(~mask), train.take(mask)
    classes = len(label_names) if label_names else int(max(train.y.max(), test.y.max())) + 1
    return Dataset(
        spec.name,
        train,
        test,
        classes,
        tuple(label_names or map(str, range(classes))),
        "image" if train.x.ndim == 4 else "tabular",
    )


def _part(rows: Any, o: dict[str, Any], name: str) -> Part:
    columns = list(rows.features)
    label = o.get("label", "label")
    image = o.get("image", next((c for c in ("image", "img") if c in columns), None))
    wanted = [label, *(o.get("features") or ([image] if image else []))]
    missing = [c for c in wanted if c not in columns]
    if missing or len(wanted) < 2:
        hint = nearest(str(missing[:1]), columns)
        raise ConfigError(
            f"task.data: {name} needs columns {missing or ['image or features']}{hint}; columns: {', '.join(columns)}"
        )
    y = np.asarray(rows[label][:], np.int64)
    if o.get("features"):
        x = np.stack([np.asarray(rows[f][:], np.float32) for f in o["features"]], 1)
    else:
        pictures = [np.asarray(p, np.float32) for p in rows[image][:]]
        if len({p.shape for p in pictures}) != 1:
            raise ConfigError(f"task.data: the images of {name} differ in size")
        x = np.stack(pictures)
        x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        x = np.ascontiguousarray(x / 255 if x.max() > 1 else x, np.float32)
    client = np.asarray([str(c) for c in rows[o["client"]][:]]) if o.get("client") else None
    return Part(x, y, client)
