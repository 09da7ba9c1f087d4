"""What timing chose for a run, as one value: written into its config.yaml, read back and applied here, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from rayfed.execute.tuning import kernels

if TYPE_CHECKING:
    from rayfed.config.schema import Config


@dataclass(frozen=True)
class Choice:
    """The settings that `auto` leaves to timing, of `resources` but for `dtype`; "auto" where nothing was timed.

    executor: loop | vmap | debug; cohort: clients per call; visits: actors | server, where a round's visits run that fit into one
    call; matmul: torch | onednn; channels_last: the memory format of convolutions' weights. Runs with the same choice compute on
    the same kernels. dtype: `task.dtype`, float32 | bf16 where it was chosen.
    """

    executor: str
    cohort: int | str
    visits: str
    matmul: str
    channels_last: bool | str
    dtype: str = "float32"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Choice:
        """Read the choice from a resolved config, as config.yaml holds it and `Config.to_dict` gives it."""
        held = {**config["resources"], "dtype": config["task"]["dtype"]}
        return cls(**{f.name: held[f.name] for f in fields(cls)})

    @classmethod
    def in_effect(cls, config: Config, cohort: int) -> Choice:
        """Return what a run computes on, in cohorts of `cohort` clients, even where its config leaves that open."""
        r = config.resources
        chosen = kernels.from_resources(r)
        return cls(r.executor, cohort, r.visits, chosen.matmul, chosen.channels_last, config.task.dtype)

    def apply(self, config: Config) -> Config:
        """Return the config with this choice in the place of each "auto"; what the config sets itself stays."""
        resources, chosen = config.resources, asdict(self)
        dtype = chosen.pop("dtype")
        made = config.with_resources(**{n: v for n, v in chosen.items() if getattr(resources, n) == "auto"})
        return made.with_dtype(dtype) if config.task.dtype == "auto" else made

    def as_options(self) -> str:
        """Return the options of `rayfed run` that repeat this choice; float32 goes without saying."""
        chosen = asdict(self)
        dtype = chosen.pop("dtype")
        said = [f"--set resources.{name}={str(value).lower()}" for name, value in chosen.items()]
        return " ".join(said + [f"--set task.dtype={dtype}"] * (dtype != "float32"))


FIXED = Choice("vmap", "auto", "auto", "torch", False)  # of `resources.deterministic`: calls are left to estimates
