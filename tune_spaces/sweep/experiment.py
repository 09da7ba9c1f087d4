"""The Tune experiment of a sweep: searcher, scheduler, and the trials' run."""

from __future__ import annotations

import logging
import secrets
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rayfed import track
from rayfed.config import user_code
from rayfed.report.point_text import short_names
from rayfed.storage import object_store
from tune_spaces.sweep.domains import clip_point, listed_values, pack_domain
from tune_spaces.sweep.folder import TUNE
from tune_spaces.sweep.messages import TrialRequest
from tune_spaces.sweep.request import SweepRequest
from tune_spaces.sweep.summary import note_failure
from tune_spaces.sweep.trial_placement import TrialPlacement, trial_bundles

QUIET = {  # variables for Tune
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the rows are in our own files
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # see `Experiment.stop`
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def tune_environment(request: SweepRequest) -> dict[str, str]:
    """Return the variables that Tune needs in this process before it is imported."""
    if request.options.search == "optuna":  # its points are nowhere else
        return {**QUIET, "TUNE_GLOBAL_CHECKPOINT_S": "1"}
    return QUIET


class Experiment:
    """The trials of a sweep: new ones, or those of which Tune has a state in the sweep's folder.

    listeners: are called with the state of the sweep after every report of a trial. Ray must be connected.
    """

    def __init__(
        self,
        request: SweepRequest,
        path: Path,
        placement: TrialPlacement,
        listeners: Sequence[Callable[[dict[str, Any]], None]],
    ):
        import ray
        from ray import tune

        from tune_spaces.sweep import progress_callback
        from tune_spaces.sweep.data_broker import start_broker
        from tune_spaces.sweep.trial import SweepTrial

        for name in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        name = f"rayfed/{path.name}/data-broker"
        self._broker = start_broker(name, _trial_request(request, path, placement))
        stored = (path / object_store.POINTER).is_file()
        node = ray.util.get_node_ip_address() if stored else None  # this process uploads what the trials write
        resources = tune.PlacementGroupFactory(trial_bundles(placement.trial, node), strategy="PACK")
        trainable = tune.with_resources(SweepTrial, resources)
        state = str(path / TUNE)
        if tune.Tuner.can_restore(state):
            self._tuner = tune.Tuner.restore(state, trainable=trainable, resume_unfinished=True, resume_errored=True)
        else:
            self._tuner = _make_tuner(request, path, placement, name, trainable)
        progress_callback.listeners[:] = listeners
        progress_callback.on_failure[:] = [partial(note_failure, path)]

    def fit(self) -> int:
        """Run the trials to their end; return how many failed. Why is in their folders."""
        results = self._tuner.fit()
        self._broker = None  # it ends with its last handle
        return len(results.errors)

    def stop(self) -> None:
        """Ask Tune to end: it saves its state, and the trials stay as they are for `--resume`. For a signal handler."""
        signal.raise_signal(signal.SIGUSR1)


def _trial_request(request: SweepRequest, path: Path, placement: TrialPlacement) -> TrialRequest:
    values = request.base.to_dict()
    return TrialRequest(
        home=str(path),
        base=values,
        fixed=request.space.fixed,
        seeds=request.options.seeds,
        metric=request.options.metric,
        mode=request.options.mode,
        plan=placement.trial,
        keep_snapshots=request.options.scheduler == "pbt",
        environment=track.environment(),
        code=user_code.used([values, [c.to_dict() for c in request.configs]]),
        session=secrets.token_hex(8),
    )


def _make_tuner(request: SweepRequest, path: Path, placement: TrialPlacement, broker: str, trainable: Any) -> Any:
    """Make the tuner of a new experiment. broker: the name of its actor."""
    from ray import tune

    from tune_spaces.sweep.progress_callback import ProgressCallback

    options = request.options
    at_once = 0 if options.scheduler == "pbt" else placement.at_once  # PBT's whole population takes turns
    progress = ProgressCallback(short_names(request.space.swept), request.trials, options.metric)
    return tune.Tuner(
        trainable,
        param_space={"point": _param_space(request), "broker": broker},
        tune_config=tune.TuneConfig(
            metric="score",
            mode=options.mode,
            num_samples=request.trials if request.points is None else 1,
            search_alg=_make_searcher(request),
            scheduler=_make_scheduler(request),
            max_concurrent_trials=at_once or None,
            reuse_actors=options.reuse,
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=str(path),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[progress],
        ),
    )


def _param_space(request: SweepRequest) -> Any:
    from ray import tune

    if request.points is not None:
        return tune.grid_search(request.points)
    return {k: pack_domain(d) for k, d in request.space.swept.items()}


def _make_searcher(request: SweepRequest) -> Any:
    if request.options.search != "optuna":
        return None
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(metric="score", mode=request.options.mode, seed=request.base.seed)


def _make_scheduler(request: SweepRequest) -> Any:
    from ray.tune import schedulers

    base, swept = request.base, request.space.swept
    period = base.evaluate.every
    if request.options.scheduler == "asha":
        return schedulers.ASHAScheduler(
            time_attr="round", max_t=base.rounds, grace_period=min(period, base.rounds), reduction_factor=3
        )
    if request.options.scheduler == "pbt":
        mutations = {k: d if (listed := listed_values(d)) is None else listed for k, d in swept.items()}
        return schedulers.PopulationBasedTraining(
            time_attr="round",
            perturbation_interval=period,
            hyperparam_mutations={"point": mutations},
            custom_explore_fn=lambda config: {**config, "point": clip_point(config["point"], swept)},
            log_config=False,
        )
    return None
