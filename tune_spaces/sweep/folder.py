"""A sweep's folder: its settings in sweep.yaml, who works on it, and its copy in object storage."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.placement import Plan
from rayfed.config import user_code
from rayfed.errors import ConfigError, RunFailed, nearest
from rayfed.launch.origin import Changes, code_digests
from rayfed.launch.start import RUN_ID
from rayfed.storage import object_store, provenance
from rayfed.storage.atomic import durable_write
from rayfed.storage.new_folder import new_folder
from rayfed.storage.owner import Owner
from rayfed.storage.text_files import json_bytes, read_json, read_yaml, timestamp, yaml_bytes
from rayfed.storage.versions import versions
from tune_spaces.sweep.domains import Point, describe_domain
from tune_spaces.sweep.request import SweepOptions, SweepRequest
from tune_spaces.sweep.trial_placement import TrialPlacement

SETTINGS, OWNER, SPACES, TUNE, TRIALS = "sweep.yaml", "driver.json", "spaces", "tune", "trials"
EVENTS = "events.jsonl"
UPLOAD_S = 30.0  # between two commits of a sweep's own files to object storage


@dataclass(frozen=True)
class SweepSettings:
    """The content of sweep.yaml.

    command: as it was typed; swept: setting -> its values, or what Tune calls its domain; points: None where the search finds
    them on the way; plan, at_once: see `TrialPlacement`; config: the one that the points change.
    """

    command: str
    spaces: list[str]
    sets: list[str]
    name: str
    options: SweepOptions
    mode: str
    rounds: int
    trials: int
    swept: dict[str, Any]
    fixed: dict[str, Any]
    points: list[Point] | None
    plan: Plan
    at_once: int
    config: dict[str, Any]
    versions: dict[str, str]

    @classmethod
    def of(cls, request: SweepRequest, placement: TrialPlacement, command: str) -> SweepSettings:
        """Collect the settings of a new sweep."""
        base, space = request.base, request.space
        return cls(
            command=command, spaces=list(request.names), sets=list(request.sets), name=base.name,
            options=request.options, mode=request.options.mode, rounds=base.rounds, trials=request.trials,
            swept={k: describe_domain(d) for k, d in space.swept.items()}, fixed=space.fixed, points=request.points,
            plan=placement.trial, at_once=placement.at_once, config=base.to_dict(), versions=versions(),
        )  # fmt: skip

    def to_yaml(self) -> bytes:
        """Write them."""
        options = {**asdict(self.options), "seeds": list(self.options.seeds)}
        return yaml_bytes({**vars(self), "options": options, "plan": asdict(self.plan)})

    @classmethod
    def read(cls, path: Path) -> SweepSettings:
        """Read them from a sweep's folder."""
        found = read_yaml(path / SETTINGS)
        options = SweepOptions(**{**found["options"], "seeds": tuple(found["options"]["seeds"])})
        return cls(**{**found, "options": options, "plan": Plan(**found["plan"])})


def make_folder(request: SweepRequest, settings: SweepSettings, out: str | Path | None) -> Path:
    """Make a new sweep's folder with all that a resume needs. out: a folder or a URI, instead of `storage.path`."""
    where, uri = object_store.local_folder(out or request.base.storage.path)
    files = {
        SETTINGS: settings.to_yaml(),
        provenance.FILE: provenance.Provenance(SETTINGS, settings.to_yaml().decode(), code=code_of(request)).to_bytes(),
        OWNER: json_bytes(asdict(Owner.me())),
        **user_code.written(request.base.to_dict()),
        **{f"{SPACES}/{i}.json": json_bytes([f, t]) for i, (f, t) in enumerate(request.space.texts.items())},
    }
    name = f"{request.base.name}-sweep"
    return new_folder(where.resolve(), name, files, run_id=os.environ.get(RUN_ID), stored=uri)


def code_of(request: SweepRequest) -> dict[str, str]:
    """Return a digest of each file of code that the runs of a sweep are made of."""
    return code_digests(
        {**request.base.to_dict(), "arms": {str(i): c.to_dict() for i, c in enumerate(request.configs)}}
    )


def check_changes(path: Path, request: SweepRequest, accept: bool) -> None:
    """Note what was changed since a sweep was started or last resumed. ConfigError where its numbers depend on that and it is not
    accepted."""
    changes = Changes(path, SETTINGS, code_of(request))
    changes.check(accept)
    lines = [json_bytes({"time": timestamp(), "kind": "changed", "note": note}) for note in changes.notes]
    if lines:
        with (path / EVENTS).open("ab") as file:
            file.write(b"".join(lines))
    if changes.changed:
        durable_write(path / provenance.FILE, changes.now.to_bytes())


def open_folder(where: str | Path) -> Path:
    """Return the folder of a sweep that is to be resumed; a URI is downloaded first.

    Raises ConfigError where there is no sweep, or another driver may be at work on it.
    """
    uri, path = str(where), Path(where)
    if object_store.is_uri(uri):
        path = object_store.runs_cache() / path.name.partition("?")[0]
        refuse_if_owned(path)
        object_store.download(uri, path)
    if not (path / SETTINGS).is_file():
        others = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() and not path.is_dir() else []
        raise ConfigError(
            f"--resume {path}: no sweep to resume here (its folder holds {SETTINGS}){nearest(path.name, others)}"
        )
    path = path.resolve()
    refuse_if_owned(path)
    return path


def install_code(path: Path) -> None:
    """Make the user's own files that a sweep's folder keeps known to this process."""
    user_code.adopt(path)
    texts = (json.loads(file.read_text(encoding="utf-8")) for file in (path / SPACES).glob("*.json"))
    user_code.install({name: text.encode() for name, text in texts})


def refuse_if_owned(path: Path) -> None:
    """Raise ConfigError where another driver is, or may be, at work on a sweep."""
    owner = Owner.read(read_json(path / OWNER))
    if owner and owner != Owner.me() and owner.alive() and (owner.here() or os.environ.get("RAYFED_TAKE_OVER") != "1"):
        whose = (
            "which still runs; stop it first"
            if owner.here()
            else "which cannot be seen from here; if it is gone, set RAYFED_TAKE_OVER=1"
        )
        raise ConfigError(f"--resume {path}: the sweep belongs to {owner}, {whose}")


def take_over(path: Path) -> None:
    """Note that this process works on a sweep."""
    durable_write(path / OWNER, json_bytes(asdict(Owner.me())))


def release(path: Path) -> None:
    """Note that no process works on a sweep any more."""
    durable_write(path / OWNER, b"{}")


class Upload:
    """Commits a sweep's folder to object storage, if it is stored there; the runs in it commit by themselves.

    Tune's and the trials' files change meanwhile: what is caught in the middle goes with the next commit.
    """

    def __init__(self, path: Path):
        self.mirror, self.last = object_store.mirror_of(path), time.monotonic()
        self.uri = self.mirror.uri if self.mirror else None

    def __call__(self, state: Mapping[str, Any]) -> None:
        """Commit if the last commit is some time ago; called with every report of a trial."""
        if self.mirror and time.monotonic() - self.last >= UPLOAD_S:
            with contextlib.suppress(RunFailed):
                self.commit()

    def commit(self, plain: bool = False) -> None:
        """Commit now. plain: as ordinary files too."""
        if self.mirror:
            self.mirror.push(0, plain=plain)
            self.last = time.monotonic()
