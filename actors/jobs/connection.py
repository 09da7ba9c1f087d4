"""The connection to a head's Jobs API."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from actors.jobs.job import KIND, SubmittedJob
from rayfed.errors import ConfigError, PlacementError, RayfedError, RunFailed, nearest

STARTING_S = 90  # a head that has just started takes no jobs for a moment
POLL_S = 0.5


def honour_token() -> None:
    """Let Ray's clients use the token that this user has; by themselves they do not. To be called before ray is imported."""
    known = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" not in os.environ and (known or (Path.home() / ".ray" / "auth_token").is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"


def dashboard_url(address: str | None) -> str:
    """Return the dashboard's URL from `--address`, RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

    Raises ConfigError where there is none, or where it is no HTTP address.
    """
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not found or found == "local":
        raise ConfigError(
            "--address: missing; where is the cluster? Give the head's dashboard, --address http://HEAD:8265, or set RAY_ADDRESS"
        )
    if found == "auto":
        return "http://127.0.0.1:8265"
    scheme, _, rest = found.rpartition("://")
    if scheme not in ("", "http", "https"):
        raise ConfigError(f"--address {found}: jobs go to the head's dashboard, http://HEAD:8265, not to {scheme}://")
    return f"{scheme or 'http'}://{rest.rstrip('/')}"


class Connection:
    """Reads, submits and ends the jobs of one head."""

    def __init__(self, address: str | None = None):
        """Connect to `dashboard_url(address)`. Raises PlacementError, one sentence, where no head answers."""
        self.url = dashboard_url(address)
        honour_token()
        with self.translated_errors():
            _try_port(self.url)
            self.client = _make_client(self.url)

    @contextlib.contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Raise what Ray's client raises inside as an error of `rayfed.errors` that says what to do."""
        try:
            yield
        except RayfedError:
            raise
        except Exception as e:
            text = " ".join(str(e).split())
            if type(e).__name__ == "AuthenticationError" or re.search(r"status code 40[13]\b|\b40[13] ", text):
                given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE") == "token"
                why = "the head refuses this token" if given else "the head asks for a token"
                raise PlacementError(
                    f"--address {self.url}: {why}; set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token) to the head's"
                ) from None
            if isinstance(e, RuntimeError) and "status code" in text and "404" not in text:
                raise RunFailed(f"--address {self.url}: the head could not do that: {text}") from None
            if isinstance(e, OSError | ConnectionError) and not isinstance(e, ValueError):
                raise PlacementError(
                    f"--address {self.url}: no Ray dashboard answers there ({type(e).__name__}). Is the head running, with a "
                    "dashboard, and is this its port (8265 by default, not 6379; from outside, through an SSH tunnel)?"
                ) from None
            if isinstance(e, ValueError | KeyError | RuntimeError):
                raise PlacementError(
                    f"--address {self.url}: what answers there is not a Ray dashboard ({text})"
                ) from None
            raise

    def list_jobs(self) -> dict[str, SubmittedJob]:
        """Return this project's jobs by name, newest first."""
        with self.translated_errors():
            details = [d for d in self.client.list_jobs() if (d.metadata or {}).get(KIND) == "job"]
        jobs = [SubmittedJob.from_ray(d) for d in details]
        return {j.name: j for j in sorted(jobs, key=lambda j: -j.started)}

    def find_job(self, name: str) -> SubmittedJob:
        """Return one of this project's jobs. Raises ConfigError with the nearest name where there is none."""
        known = self.list_jobs()
        if name not in known:
            raise ConfigError(
                f"{self.url} has no job {name!r}{nearest(name, known)}; "
                + (f"jobs: {', '.join(known)}" if known else "it has none")
            )
        return known[name]

    def read_job(self, name: str) -> SubmittedJob:
        """Return a job as it is now, a helper's too."""
        with self.translated_errors():
            return SubmittedJob.from_ray(self.client.get_job_info(name))

    def read_log(self, name: str) -> str:
        """Return all that a job has printed."""
        with self.translated_errors():
            return self.client.get_job_logs(name) or ""

    def stop_job(self, name: str) -> None:
        """Ask a job to end; it commits its current round first."""
        with self.translated_errors():
            self.client.stop_job(name)

    def delete_job(self, name: str) -> None:
        """Remove a job that has ended from the head's list."""
        self.client.delete_job(name)

    def submit_job(self, **job: Any) -> str:
        """Submit a job and return its name. job: arguments of Ray's `submit_job`."""
        with self.translated_errors():
            end = time.monotonic() + STARTING_S
            while True:
                try:
                    return self.client.submit_job(**job)
                except RuntimeError as e:
                    if "No available agent" not in str(e) or time.monotonic() > end:
                        raise
                    time.sleep(POLL_S)

    def has_ended(self, name: str) -> bool:
        """Return whether a job has ended."""
        return self.read_job(name).status.ended

    def wait_for_end(self, name: str, seconds: float) -> bool:
        """Wait for a job's end; return whether it came in that time."""
        end = time.monotonic() + seconds
        while not self.has_ended(name):
            if time.monotonic() > end:
                return False
            time.sleep(POLL_S)
        return True


def _try_port(url: str) -> None:
    place = urlsplit(url)
    port = place.port or (443 if place.scheme == "https" else 80)
    socket.create_connection((place.hostname or "", port), timeout=5).close()


def _make_client(url: str) -> Any:
    """Make Ray's `JobSubmissionClient`."""
    from ray.job_submission import JobSubmissionClient

    for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Ray's variables win over the argument.
    before, os.environ["RAY_API_SERVER_ADDRESS"] = os.environ.get("RAY_API_SERVER_ADDRESS"), url
    try:
        return JobSubmissionClient(url)
    finally:
        os.environ.pop("RAY_API_SERVER_ADDRESS")
        os.environ |= {"RAY_API_SERVER_ADDRESS": before} if before else {}
