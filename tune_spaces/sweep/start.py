"""`rayfed sweep`: start or resume a checked sweep and follow it to its end."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from actors.placement import Node, nodes_of
from actors.session import Session, local_node
from rayfed.launch.signals import stop_on_signals
from rayfed.launch.start import Finished
from tune_spaces.sweep.experiment import Experiment, tune_environment
from tune_spaces.sweep.folder import (
    SweepSettings,
    Upload,
    check_changes,
    install_code,
    make_folder,
    open_folder,
    release,
    take_over,
)
from tune_spaces.sweep.request import SweepRequest, repeat_request
from tune_spaces.sweep.summary import failure, interruption, prune_snapshots, resume_command, write_summary
from tune_spaces.sweep.trial_placement import TrialPlacement, check_fits, place_trials

Watch = Callable[[dict[str, Any]], Any]


def start_sweep(
    request: SweepRequest,
    *,
    out: str | Path | None = None,
    address: str | None = None,
    watch: Watch | None = None,
    command: str = "",
) -> Finished:
    """Run a checked sweep to its end.

    Arguments:
        out: folder or URI of the sweep's folder, instead of `storage.path`.
        address: of a Ray cluster, "auto", or "local".
        watch: is called with the state of the sweep after every report of a trial.
        command: the command line, for the sweep's page.

    Raises the errors of `rayfed.errors`; what was committed stays.
    """

    def place(nodes: Sequence[Node]) -> TrialPlacement:
        return place_trials(request.configs, nodes, request.options.concurrent)

    with _ray(request, address, place) as (session, placement):
        path = make_folder(request, SweepSettings.of(request, placement, command), out)
        session.resume = f"Continue with: {resume_command(path, None)}"
        return _finish(request, path, placement, watch)


def resume_sweep(
    path: str | Path, *, accept_changes: bool = False, address: str | None = None, watch: Watch | None = None
) -> Finished:
    """Continue a sweep: trials that were running go on at their runs' last snapshots, what had ended stays.

    path: its folder, or its URI in object storage; accept_changes: whether it may go on though its settings or its code are not what
    it was started with. Raises the errors of `rayfed.errors`.
    """
    from rayfed.config.schema import Config
    from rayfed.launch.preflight import load_request

    path = open_folder(path)
    settings = SweepSettings.read(path)
    install_code(path)
    base = load_request(settings.config)
    assert isinstance(base, Config)
    request = repeat_request(settings.spaces, base, settings.options, settings.points, settings.sets)
    check_changes(path, request, accept_changes)

    def place(nodes: Sequence[Node]) -> TrialPlacement:
        check_fits(settings.plan, nodes)
        return TrialPlacement(settings.plan, settings.at_once)

    with _ray(request, address, place) as (session, placement):
        take_over(path)
        session.resume = f"Continue with: {resume_command(path, None)}"
        return _finish(request, path, placement, watch)


@contextlib.contextmanager
def _ray(
    request: SweepRequest, address: str | None, place: Callable[[Sequence[Node]], TrialPlacement]
) -> Iterator[tuple[Session, TrialPlacement]]:
    """Start or join Ray and yield the session and the trials' placement. What cannot be placed is refused before Ray starts, or, on a
    cluster, before a trial does."""
    from actors.dashboard_names import job_metadata

    os.environ.update({k: v for k, v in tune_environment(request).items() if k not in os.environ})
    session = Session(address)
    placement = place([local_node()]) if session.local else None
    session.connect(job_metadata([request.base]), monitored="prometheus" in request.base.track)
    import ray

    try:
        yield session, placement or place(nodes_of(ray.nodes()))
    finally:
        session.close()


def _finish(request: SweepRequest, path: Path, placement: TrialPlacement, watch: Watch | None) -> Finished:
    """Run the trials of a sweep whose folder stands, and write its summary. Raises Interrupted, or RunFailed where trials fail."""
    upload = Upload(path)
    experiment = Experiment(request, path, placement, [*([watch] if watch else []), upload])
    try:
        upload.commit()
        with stop_on_signals(experiment, lambda: "Tune to write its state; the trials stay as they are") as signals:
            failed = experiment.fit()
        prune_snapshots(path, request.base.storage.keep)
        if signals:
            failed = 0
        finished = write_summary(path, interrupted=bool(signals), failed=failed)
    finally:
        release(path)
    upload.commit(plain=True)
    resume = resume_command(path, upload.uri)
    if signals:
        raise interruption(signals[0], resume)
    if failed:
        raise failure(path, failed, request.trials, resume)
    return finished


def command_line(argv: Sequence[str] | None = None) -> str:
    """Return this process's command as it was typed."""
    return " ".join(["rayfed", *map(shlex.quote, (sys.argv if argv is None else argv)[1:])])
