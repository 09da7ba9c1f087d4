"""The data splits of a run or a study, made and judged before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayfed import clock, methods, metrics, models, partition
from rayfed.config.schema import Config
from rayfed.errors import ConfigError
from rayfed.launch import metric_names, model_check, task_check
from rayfed.launch.preflight import asked

if TYPE_CHECKING:
    from rayfed.config.schema import Study
    from rayfed.partition import Federation


@dataclass
class Federations:
    """Splits each (seed, data, federation) once, so that all arms of a study share it."""

    known: dict[str, Federation] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def of(self, config: Config) -> Federation:
        """Return the config's split. ConfigError where the data cannot be read or split, or model or method cannot take it."""
        k = partition.split_key(config.to_dict())
        if k not in self.known:
            self.known = {k: partition.build(config)}  # seeds come one after the other: one split at a time
        split = self.known[k]
        method = methods.of(config)
        problems = models.fits(config.task.model, split.input_shape) + task_check.problems(config, split, method)
        problems = problems or asked(config.method.name, "fits", lambda: method.fits(split))
        problems = problems or metric_names.settings_problems(config, method, split)
        problems = problems or clock.problems(config, split, method.visit_steps(split))
        if problems:
            raise ConfigError(problems)
        return split

    def with_digest(self, config: Config) -> tuple[Federation, str]:
        """Return what `of` returns, and its digest."""
        made, k = self.of(config), partition.split_key(config.to_dict())
        if k not in self.digests:
            self.digests[k] = made.digest()
        return made, self.digests[k]

    def checked(self, config: Config) -> tuple[Federation, str]:
        """Return what `with_digest` returns. ConfigError also where the model cannot be built."""
        made = self.of(config)
        if wrong := model_check.find_problems({"": model_check.question(config, made)}):
            raise ConfigError(wrong[""])
        return self.with_digest(config)

    def notes(self, request: Config | Study) -> list[str]:
        """Return what a reader should know of how a run's data was read, or that of a study's arms under their first seed.

        ConfigError where data or model of one of them cannot be had, as before a run.
        """
        if isinstance(request, Config):
            return list(self.checked(request)[0].notes)
        self.check(request)
        firsts = [config.model_copy(update={"seed": request.seeds[0]}) for config in request.arms.values()]
        return list(dict.fromkeys(note for first in firsts for note in self.of(first).notes))

    def check(self, study: Study) -> str:
        """Judge every arm's split and model under the first seed, and claims about it; return a digest of these splits.

        ConfigError lists what is wrong with any of them.
        """
        digests: dict[str, None] = {}
        found: dict[str, list[str]] = {}
        questions = {}
        for arm, config in study.arms.items():
            first = config.model_copy(update={"seed": study.seeds[0]})
            try:
                split, digest = self.with_digest(first)
                digests[digest] = None
            except ConfigError as e:
                for p in e.problems:
                    found.setdefault(p, []).append(arm)
                continue
            questions[arm] = model_check.question(first, split)
            for i, claim in enumerate(study.claims):
                where = f"claim.{i}.metric" if len(study.claims) > 1 else "claim.metric"
                method = methods.of(first)
                wrong = metric_names.problem(where, metrics.measured(claim.metric), method, split)
                if wrong and arm in (claim.better, claim.than):
                    found.setdefault(wrong, []).append(arm)
        for arm, problems in model_check.find_problems(questions).items():
            for p in problems:
                found.setdefault(p, []).append(arm)
        if found:
            everywhere = len(study.arms)
            raise ConfigError([p if len(a) == everywhere else f"arms.{', '.join(a)}: {p}" for p, a in found.items()])
        return "+".join(digests)
