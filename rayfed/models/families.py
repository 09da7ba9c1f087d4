"""Families: several models by name under `task.model`, each that of a share of the clients. Who has which; nothing of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayfed import keys
from rayfed.config.schema import Model, Named

if TYPE_CHECKING:
    from rayfed.config.schema import Config


def models(spec: Named) -> dict[str, Named]:
    """Return key of the config -> model: of one model {"task.model": it}, of families {"task.model.small": ..., ...}."""
    if not isinstance(spec, Model) or not spec.families:
        return {"task.model": spec}
    return {f"task.model.{n}": Named.model_validate({"name": f.name, **f.options}) for n, f in spec.families.items()}


def names(config: Config) -> tuple[str, ...]:
    """Return the names of the families, in the order of the config; () where all clients have one model."""
    return tuple(config.task.model.families)


def configs(config: Config) -> dict[str, Config]:
    """Return name -> the config with that family's model as the only one; {"": config} where all clients have one model."""
    if not names(config):
        return {"": config}
    found = zip(names(config), models(config.task.model).values(), strict=True)
    return {n: with_model(config, Model.model_validate({"name": m.name, **m.options})) for n, m in found}


def with_model(config: Config, model: Model) -> Config:
    """Return the same config with another `task.model`."""
    return config.model_copy(update={"task": config.task.model_copy(update={"model": model})})


def drawn(config: Config, population: int, clients: int) -> np.ndarray | None:
    """Return (N,) int64, the number of each client's family from the seed alone: exact counts, by the largest remainders, among the
    clients that take part and among the held-out ones. None where all have one model."""
    shares = np.array([f.share for f in config.task.model.families.values()])
    if not len(shares):
        return None
    out = [
        keys.proportional(shares, n, keys.numpy(keys.key(config.seed, 0, -1, f"families of {who}")))
        for who, n in (("clients", population), ("held-out clients", clients - population))
    ]
    return np.concatenate(out).astype(np.int64)


def problems(config: Config, population: int) -> list[str]:
    """Return what does not go with families: a share that comes to nobody, and settings of one model."""
    known = names(config)
    if not known:
        return []
    there = drawn(config, population, population)
    assert there is not None
    found = [
        f"task.model.{n}.share: {config.task.model.families[n].share:g} found, which comes to none of the {population} clients that "
        "take part"
        for i, n in enumerate(known)
        if not (there == i).any()
    ]
    several = f"task.model has families ({', '.join(known)})"
    if config.init.from_ is not None:
        found.append(f"init.from: {config.init.from_!r} found, which is one model, and {several}; allowed: null")
    return found
