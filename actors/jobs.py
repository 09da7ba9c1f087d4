"""Runs on a cluster through Ray's Jobs API: submit, follow, stop, and bring home. Needs only the head's dashboard port."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from actors import onhead
from actors.package import CONFIG, Package, pack
from rayfed.errors import ConfigError, Interrupted, PlacementError, RayfedError, RunFailed, nearest
from rayfed.storage import object_store
from rayfed.storage.atomic import remove, sync_dir
from rayfed.storage.run_folder import new_id

if TYPE_CHECKING:
    from rayfed.config.schema import Config, Study

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
PROGRESS = re.compile(r"(?:\[\d+/\d+\] \S+ seed \d+  )?(?:round (\d+)/(\d+)|starting\b|running\b)")
OPENING = re.compile(r"Running entrypoint for job |\S+ \S+\s+INFO job_manager\.py:")  # Ray's own lines in a job's log
CODES = (2, 3, 4, 130, 143)
STOP_S = 7 * 86400  # Ray kills a stopped job after so many seconds; a round in hand may take long
START_S = 90  # for a head that has just started
POLL = 0.5
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")


def honour_token() -> None:
    """Let Ray's clients use the token that this user has; by themselves they do only if told (before ray is imported)."""
    known = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" not in os.environ and (known or (Path.home() / ".ray" / "auth_token").is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"


def url(address: str | None) -> str:
    """The dashboard's URL from --address, RAY_API_SERVER_ADDRESS or RAY_ADDRESS. ConfigError if there is none."""
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


class Cluster:
    """A connection to a head's Jobs API. PlacementError, one sentence, where there is none."""

    def __init__(self, address: str | None = None):
        self.url = url(address)
        honour_token()
        place = urlsplit(self.url)
        with self._sentences():
            port = place.port or (443 if place.scheme == "https" else 80)
            socket.create_connection((place.hostname or "", port), timeout=5).close()
            from ray.job_submission import JobSubmissionClient

            for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
                logging.getLogger(chatty).setLevel(logging.WARNING)
            # Ray's variables win over the argument.
            before, os.environ["RAY_API_SERVER_ADDRESS"] = os.environ.get("RAY_API_SERVER_ADDRESS"), self.url
            try:
                self.client: Any = JobSubmissionClient(self.url)
            finally:
                os.environ.pop("RAY_API_SERVER_ADDRESS")
                os.environ |= {"RAY_API_SERVER_ADDRESS": before} if before else {}

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        """What a client's errors mean."""
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

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def jobs(self) -> dict[str, Any]:
        """Submission id -> details of this project's jobs, newest first."""
        with self._sentences():
            found = [j for j in self.client.list_jobs() if (j.metadata or {}).get("rayfed") == "job"]
        return {j.submission_id: j for j in sorted(found, key=lambda j: -(j.start_time or 0))}

    def job(self, name: str) -> Any:
        """Details of one job. ConfigError with the nearest name if there is none."""
        known = self.jobs()
        if name not in known:
            raise ConfigError(
                f"{self.url} has no job {name!r}{nearest(name, known)}; "
                + (f"jobs: {', '.join(known)}" if known else "it has none")
            )
        return known[name]

    def log(self, name: str) -> str:
        with self._sentences():
            return self.client.get_job_logs(name) or ""

    def info(self, name: str) -> Any:
        with self._sentences():
            return self.client.get_job_info(name)

    def ended(self, name: str) -> bool:
        return str(self.info(name).status.value) in ENDED

    def send(self, **job: Any) -> str:
        """Submit; a head that has just started takes no jobs for a moment."""
        end = time.monotonic() + START_S
        while True:
            try:
                return self.client.submit_job(**job)
            except RuntimeError as e:
                if "No available agent" not in str(e) or time.monotonic() > end:
                    raise
                time.sleep(POLL)

    def wait(self, name: str, seconds: float) -> bool:
        """Whether a job ended in that time."""
        end = time.monotonic() + seconds
        while not self.ended(name):
            if time.monotonic() > end:
                return False
            time.sleep(POLL)
        return True

    async def text(self, name: str) -> AsyncIterator[str]:
        """A job's log as it grows, to its end; a broken connection is taken up again where it broke."""
        queue: asyncio.Queue[str] = asyncio.Queue(maxsize=64)
        sent = seen = 0

        async def tail() -> None:
            nonlocal sent
            while True:
                got = 0
                try:
                    async for piece in self.client.tail_job_logs(name):
                        got += len(piece)
                        if got > sent:  # after a new connection the log comes from its beginning
                            await queue.put(piece[sent - got :])
                            sent = got
                except (RuntimeError, OSError):
                    pass
                await asyncio.sleep(1)

        task, looked = asyncio.create_task(tail()), 0.0
        try:
            while True:
                with contextlib.suppress(asyncio.TimeoutError):
                    piece = await asyncio.wait_for(queue.get(), POLL)
                    seen += len(piece)
                    yield piece
                    continue
                if time.monotonic() - looked >= 1:
                    looked = time.monotonic()
                    if await asyncio.to_thread(self.ended, name):
                        break
        finally:
            task.cancel()
        rest = await asyncio.to_thread(self.log, name)
        if rest[seen:]:
            yield rest[seen:]

    # -- helpers on the head -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _helper(self, *args: str) -> Iterator[str]:
        """A job that runs `actors/onhead.py ARGS` and leaves no trace."""
        with tempfile.TemporaryDirectory() as d, self._sentences():
            shutil.copyfile(onhead.__file__, Path(d) / "onhead.py")
            name = self.send(
                entrypoint=shlex.join(["python", "onhead.py", *args]),
                submission_id=f"rayfed-helper-{secrets.token_hex(4)}",
                runtime_env={"working_dir": d},
                metadata={"rayfed": "helper", "job_name": f"rayfed {args[0]}"},
            )
        try:
            yield name
        finally:
            with contextlib.suppress(Exception):
                if not self.ended(name):
                    self.client.stop_job(name)
                    self.wait(name, 20)
                self.client.delete_job(name)

    def ask(self, *args: str) -> Any:
        """The answer of a helper. RunFailed with its log if it gave none."""
        with self._helper(*args) as name:
            if not self.wait(name, 120):
                raise PlacementError(
                    f"{self.url}: the head did not start a small job in 120 s; it may be out of memory or CPUs"
                )
            text = self.log(name)
            found = onhead.heard(text)
            if not found:
                info = self.info(name)
                raise RunFailed(
                    f"{self.url}: the head could not run `python`: {(text or info.message or '').strip()[-2000:]}"
                )
            return found[-1]


# -- submit ------------------------------------------------------------------------------------------------------------


def check(there: Mapping[str, Any], where: str) -> bool:
    """Whether the head's Python can run this project; returns whether it lacks our very sources. PlacementError otherwise."""
    here = onhead.about()
    for what, digits in (("Python", 2), ("Ray", 2)):
        a, b = here[what.lower()], there[what.lower()]
        if b is None:
            raise PlacementError(
                f"{where}: the head's `python` ({there['python']}) has no Ray; start the head inside its environment"
            )
        if str(a).split(".")[:digits] != str(b).split(".")[:digits]:
            raise PlacementError(
                f"{where}: {what} {b} there, {what} {a} here; submit from an environment with {what} {'.'.join(str(b).split('.')[:digits])}"
            )
    if there["missing"]:
        raise PlacementError(
            f"{where}: the head's Python lacks {', '.join(there['missing'])}; install there: pip install {' '.join(there['missing'])}"
        )
    return there["project"] != here["project"]


def requirements() -> list[str]:
    """Names of the distributions that the project needs."""
    try:
        lines = importlib.metadata.requires("rayfed-engine") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [m[0] for line in lines if ";" not in line and (m := re.match(r"[\w.-]+", line))]


def described(request: Config | Study) -> dict[str, str]:
    """What the list of jobs tells about a request."""
    configs = [c for _, _, c in request.runs()] if hasattr(request, "runs") else [request]
    base = configs[0]
    return {
        "method": ", ".join(dict.fromkeys(c.method.name for c in configs)),
        "clients": str(base.federation.clients),
        "per_round": str(base.per_round()),
        "rounds": str(base.rounds),
        "runs": str(len(configs)),
    }


def out_argument(out: str) -> str:
    """`--out` as the head's shell reads it: a relative path starts at $RAYFED_HOME, or home."""
    if object_store.is_uri(out) or out.startswith("/"):
        return shlex.quote(out)
    return '"${RAYFED_HOME:-$HOME}"/' + shlex.quote(out)


def entrypoint(command: str, args: Sequence[str], out: str) -> str:
    """`python -m rayfed.cli run config.yaml --out ...`"""
    return f"exec python -m rayfed.cli {command} {shlex.join(args)} --out {out_argument(out)}"


def submit(
    cluster: Cluster, request: Config | Study, package: Package, command: str, args: Sequence[str], out: str
) -> str:
    """Send a package and start `rayfed COMMAND ARGS` there: the job's name, which is the run folder's too."""
    name = new_id(str(package.config.get("name") or "run"))
    about = {"run": name, "out": out, "command": command, **described(request)}
    return _start(cluster, name, package, entrypoint(command, args, out), about)


def _start(cluster: Cluster, name: str, package: Package, entry: str, about: Mapping[str, str]) -> str:
    from rayfed import track

    ship = check(cluster.ask("probe", *requirements()), cluster.url)
    sinks = {k: v for k, v in track.environment().items() if not SECRET.search(k)}
    env = {
        **sinks,
        **{k: os.environ[k] for k in ("RAYFED_TAKE_OVER",) if k in os.environ},
        "RAYFED_RUN_ID": about["run"],
        "PYTHONUNBUFFERED": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S),
    }
    sent = {"folders": json.dumps({n: str(p) for n, p in package.folders.items()})} if package.folders else {}
    with tempfile.TemporaryDirectory() as d, cluster._sentences():
        package.write(Path(d), project=ship)
        return cluster.send(
            entrypoint=entry,
            submission_id=name,
            runtime_env={"working_dir": d, "env_vars": env},
            metadata={"rayfed": "job", "job_name": name, **about, **sent},
        )


def request(
    config: str,
    sets: Sequence[str],
    *,
    command: str,
    spaces: str | None = None,
    more: Sequence[str] = (),
    out: str | None,
    address: str | None,
    shared: Sequence[Path] = (),
) -> tuple[Cluster, str]:
    """`rayfed submit COMMAND ...`: everything is checked here before the cluster is asked. The connection and the job."""
    from rayfed.config.schema import Config, load_config

    asked = load_config(config, sets)
    base = asked if isinstance(asked, Config) else asked.base
    files = [s for s in (spaces or "").split(",") if s.endswith(".py")]
    if lost := [f for f in files if not Path(f).is_file()]:
        raise ConfigError([f"space {f!r}: no such file" for f in lost])
    package = pack(asked, files=files, shared=shared)
    names = ",".join(f"spaces/{Path(s).name}" if s in files else s for s in spaces.split(",")) if spaces else None
    cluster = Cluster(address)
    args = [*([names] if names else []), CONFIG, *more]
    return cluster, submit(cluster, asked, package, command, args, out or base.storage.path)


def again(where: str, sets: Sequence[str], *, address: str | None, more: Sequence[str] = ()) -> tuple[Cluster, str]:
    """`rayfed submit resume`: continue a job's run, study or sweep where it lies, by a new job NAME-2, NAME-3 ... where: the
    job, or a folder on the head (relative as `--out`), or a URI. The connection and the job.

    Data that travelled with the job travel once more from where they were; ConfigError if they are not there any more.
    """
    cluster = Cluster(address)
    known, package = cluster.jobs(), Package({})
    if where in known:
        job = known[where]
        about = {k: v for k, v in job.metadata.items() if k not in ("rayfed", "job_name")}
        if live := [
            n for n, j in known.items() if j.metadata.get("run") == about["run"] and j.status.value not in ENDED
        ]:
            raise ConfigError(
                f"submit resume {where}: {live[0]} is still at work on it; end it with: rayfed stop {live[0]}"
            )
        folder = (
            object_store.join(about["out"], about["run"])
            if object_store.is_uri(about["out"])
            else f"{about['out']}/{about['run']}"
        )
        package.folders = {n: Path(p) for n, p in json.loads(about.pop("folders", "{}")).items()}
        if lost := [p for p in package.folders.values() if not p.exists()]:
            raise ConfigError(
                [f"submit resume {where}: {p} travelled with the job and is not here any more" for p in lost]
            )
    elif object_store.is_uri(where) or "/" in where:
        folder = where.rstrip("/")
        out, _, run = folder.partition("?")[0].rpartition("/")
        about = {"run": run, "out": out + folder[len(folder.partition("?")[0]) :]}
    else:
        raise ConfigError(
            f"submit resume: {cluster.url} has no job {where!r}{nearest(where, known)}; "
            "a folder on the head is written with a /, like runs/NAME-ID"
        )
    about |= {"command": "resume", **{k: v for k, _, v in (s.partition("=") for s in sets) if k == "rounds"}}
    name = next(n for i in itertools.count(2) if (n := f"{about['run']}-{i}") not in known)
    options = [part for s in sets for part in ("--set", s)] + list(more)
    entry = f"exec python -m rayfed.cli resume {out_argument(folder)} {shlex.join(options)}".rstrip()
    return cluster, _start(cluster, name, package, entry, about)


# -- follow ------------------------------------------------------------------------------------------------------------


class Screen:
    """Prints a job's log; on a terminal the progress is one live line, as in a run of one's own."""

    def __init__(self, quiet: bool = False):
        self.quiet, self.part = quiet, ""
        self.live: Any = None
        self.terminal = sys.stdout.isatty()

    def __enter__(self) -> Screen:
        if self.terminal and not self.quiet:
            from rich.live import Live

            self.live = Live("", refresh_per_second=8, transient=True)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.part:
            self.line(self.part)
        if self.live is not None:
            self.live.__exit__(*error)

    def feed(self, text: str) -> None:
        *lines, self.part = (self.part + text).split("\n")
        for line in lines:
            self.line(line)

    def line(self, line: str) -> None:
        if self.quiet or OPENING.match(line):
            return
        if self.live is None:
            print(line, flush=True)
        elif PROGRESS.match(line):
            self.live.update(line)
        else:
            self.live.console.print(line, markup=False, highlight=False, soft_wrap=True)


def follow(cluster: Cluster, name: str, *, quiet: bool = False) -> int:
    """Show a job's log to its end; the exit code of its command. Interrupted on Ctrl-C: the job goes on."""

    async def show(screen: Screen) -> None:
        async for piece in cluster.text(name):
            screen.feed(piece)

    try:
        with Screen(quiet) as screen:
            asyncio.run(show(screen))
    except KeyboardInterrupt:
        raise Interrupted(
            f"no longer following; the job goes on. Follow it with: rayfed logs -f {name}; end it with: rayfed stop {name}"
        ) from None
    code = exit_code(cluster.info(name))
    if code and not quiet:
        info = cluster.info(name)
        if info.driver_exit_code is None and info.message and info.status.value == "FAILED":
            print(f"rayfed: the job failed: {info.message}", file=sys.stderr)
    return code


def exit_code(info: Any) -> int:
    """The command's own code; 143 for a job that was stopped, 4 where it ended without one."""
    status = info.status.value
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return 143
    return info.driver_exit_code if info.driver_exit_code in CODES else 4


# -- status ------------------------------------------------------------------------------------------------------------


def standing(info: Any) -> str:
    """A job's status as this project says it."""
    status = info.status.value
    if status == "FAILED":
        code = exit_code(info)
        return {130: "interrupted", 143: "terminated"}.get(code, f"failed (exit {code})")
    return {"SUCCEEDED": "done"}.get(status, status.lower())


def status(cluster: Cluster) -> list[dict[str, Any]]:
    """This project's jobs, newest first: job, status, command, method, clients, per_round, round, rounds, runs, started (s)."""
    found = []
    for name, job in cluster.jobs().items():
        about = job.metadata
        rounds = list(PROGRESS.finditer(cluster.log(name)))
        numbers = [m for m in rounds if m[1]]
        whole = {k: int(about[k]) for k in ("clients", "per_round", "rounds", "runs") if about.get(k)}
        row = {
            "job": name,
            "status": standing(job),
            "command": about.get("command"),
            "method": about.get("method"),
            **whole,
        }
        row |= {"round": int(numbers[-1][1]) if numbers else 0, "started": (job.start_time or 0) / 1000}
        found.append(row)
    return found


def state(cluster: Cluster, name: str) -> dict[str, Any]:
    """One job: how it stands, where its run folder is, and the run's `state.json` ({} before it has one)."""
    job = cluster.job(name)
    about = {"job": name, "status": standing(job), "method": job.metadata.get("method"), "out": job.metadata.get("out")}
    if job.status.value in ENDED:
        about["exit_code"] = exit_code(job)
    return about | cluster.ask("state", job.metadata["out"], job.metadata["run"])


# -- stop --------------------------------------------------------------------------------------------------------------


def stop(cluster: Cluster, name: str, *, now: bool = False) -> str:
    """End a job after the round in hand has been committed, or at once; what became of it. Waits for its end."""
    job = cluster.job(name)
    if job.status.value in ENDED:
        return f"{name} has ended already: {standing(job)}"
    with cluster._sentences():
        cluster.client.stop_job(name)
    if now:
        cluster.ask("end", job.metadata["run"])
    try:
        while not cluster.ended(name):
            time.sleep(POLL)
    except KeyboardInterrupt:
        raise Interrupted(
            f"{name} is still stopping: its round in hand is being committed; at once: rayfed stop --now {name}"
        ) from None
    how = "at once; its last snapshot counts" if now else "its last round is committed"
    return f"{name} has stopped: {how}. Bring it home with: rayfed fetch {name}"


# -- fetch -------------------------------------------------------------------------------------------------------------


def fetch(cluster: Cluster, name: str, out: Path) -> Path:
    """Bring a job's run folder to OUT/NAME through the Jobs API, whole and checked, or not at all.

    What lies in object storage that is reached from here comes from there. ConfigError if there is nothing to bring or the
    folder here is in use; RunFailed if it does not arrive as it was sent.
    """
    job = cluster.job(name)
    where, run = job.metadata["out"], job.metadata["run"]
    target = Path(out) / run
    object_store.free(target)
    if object_store.is_uri(where) and not where.startswith("file:"):
        return object_store.download(object_store.join(where, run), target)
    hidden = target.parent / f".new-{secrets.token_hex(6)}"
    try:
        hidden.mkdir(parents=True)
        archive = hidden / ".archive"
        asyncio.run(_receive(cluster, name, where, run, archive))
        inside = hidden / "run"
        inside.mkdir()
        with tarfile.open(archive) as tar:
            tar.extractall(inside, filter="data")
        for pointer in inside.rglob(object_store.POINTER):  # a copy: nothing more is uploaded from it
            pointer.unlink()
        if target.exists():
            old = target.parent / f".old-{secrets.token_hex(6)}"
            os.rename(target, old)
            remove(old)
        os.rename(inside, target)
        sync_dir(target.parent)
    except (OSError, tarfile.TarError) as e:
        raise RunFailed(f"cannot bring {name} to {target}: {e}") from e
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return target


async def _receive(cluster: Cluster, name: str, where: str, run: str, archive: Path) -> None:
    """The lines of `onhead.send` back into a file."""
    digest, size, count, part = hashlib.sha256(), 0, 0, ""
    with cluster._helper("send", where, run) as helper, open(archive, "wb") as file:
        async for text in cluster.text(helper):
            *lines, part = (part + text).split("\n")
            for value in onhead.heard("\n".join(lines)):
                if isinstance(value, list):
                    if value[0] != count:
                        raise RunFailed(
                            f"fetch {name}: part {count} of the folder is lost on the way; repeat the command"
                        )
                    try:
                        block = base64.b64decode(value[1], validate=True)
                    except binascii.Error:
                        raise RunFailed(
                            f"fetch {name}: part {count} of the folder is damaged; repeat the command"
                        ) from None
                    file.write(block)
                    digest.update(block)
                    size, count = size + len(block), count + 1
                    continue
                if "missing" in value:
                    raise ConfigError(
                        f"fetch: {name} has no run folder on the head ({value['missing']}); see: rayfed logs {name}"
                    )
                if (value["chunks"], value["bytes"], value["sha256"]) != (count, size, digest.hexdigest()):
                    raise RunFailed(f"fetch {name}: the folder did not arrive as it was sent; repeat the command")
                return
    raise RunFailed(f"fetch {name}: the head stopped sending: {part.strip()[-500:] or 'no message'}")
