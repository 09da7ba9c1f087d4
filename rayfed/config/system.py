"""Systems: published work as a ready config of its name, whose section `system` says what it is and what is not claimed of it.

The section is for readers: a run is the same with and without it.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from rayfed.config.problems import sentences
from rayfed.config.schema import Section
from rayfed.errors import ConfigError


class System(Section):
    """What a reader should know of a system; every text in plain sentences."""

    about: str = Field(description="What it is, in one sentence.")
    paper: str = Field(description="Authors, title, where it appeared, arXiv number.")
    family: list[str] = Field(min_length=1, description="Kinds of systems that it belongs to.")
    requires: str = Field(description="What it needs of models, data, clients and server.")
    formula: str = Field(description="What is computed, by whom.")
    here: str = Field(description="What stands in for what in this config: data, model, sizes.")
    ours: str = Field(description="What is not the paper's.")
    unclaimed: str = Field(description="What is not claimed.")
    missing: str | None = Field(None, description="What of the paper is not built.")
    claims: list[str] = Field([], description="Files of benchmarks/claims that judge it, without their ending.")


def read(section: Any) -> System:
    """Return a config's section `system`. ConfigError with all that is wrong with it."""
    if found := problems(section):
        raise ConfigError(found)
    return System.model_validate(section)


def problems(section: Any) -> list[str]:
    """Return what is wrong with a section `system`."""
    try:
        System.model_validate(section)
    except ValidationError as e:
        return sentences(e, System, "system")
    return []
