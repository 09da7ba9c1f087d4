"""Whatever happens to a file of a run's folder: no traceback, and other numbers never.

A file of an interrupted or of an ended run gets a flipped bit, is cut, emptied, removed, or replaced by noise, by a folder or
by another file of the run; then the run is resumed, listed and reported. Each ends well or with a sentence, and what ends well
has the numbers of the run that nothing happened to.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from rayfed.errors import RayfedError
from rayfed.launch.start import Finished, resume_local
from rayfed.report.subject import load
from rayfed.storage import round_log
from rayfed.storage.events import read_events
from rayfed.storage.listing import list_runs
from rayfed.storage.tree_files import load_tree
from tests import toy
from tests.disk import AtOnce
from tests.fresh import FRESH

SETTINGS: dict[str, Any] = {"rounds": 6, "evaluate": {"every": 2}, "storage": {"snapshot_every": 2, "keep": 2}}
UNREAD = (
    "report.html",
    "plots/",
    "events.jsonl",
    ".lock",
    "state.json",
    "summary.json",
    "provenance.json",
    "lock.json",
)


class Folders(NamedTuple):
    """A run of a method with client states: as a kill after round 5 leaves it, and ended."""

    interrupted: Path
    done: Path


def make_folders(home: Path) -> Folders:
    """Run it, and take a copy of its folder on the way."""

    def copied(round: int) -> None:
        if round == 5 and not (home / "killed").exists():
            shutil.copytree(home / "done", home / "killed")

    done = toy.run_folder("scaffold", home / "done", committed=copied, behind=AtOnce(), **SETTINGS).folder.path
    (done / "report.html").write_text("a page")
    return Folders(home / "killed" / done.name, done)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("sound"))


@pytest.fixture(autouse=True)
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds."""
    monkeypatch.setattr("rayfed.report.write_report", lambda path: load(path))


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def cut(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(max(1, file.stat().st_size)))


def noise(file: Path, rng: random.Random) -> None:
    file.write_bytes(rng.randbytes(max(1, file.stat().st_size)))


def folder_instead(file: Path, rng: random.Random) -> None:
    file.unlink()
    (file / "inside").mkdir(parents=True)


def another(file: Path, rng: random.Random) -> None:
    run = next(p for p in file.parents if (p / "events.jsonl").exists())
    others = sorted(p for p in run.rglob("*") if p.is_file() and p != file and p.suffix == file.suffix)
    if others:
        shutil.copyfile(rng.choice(others), file)


HARMS: dict[str, Callable[[Path, random.Random], Any]] = {
    "flip": flip,
    "cut": cut,
    "empty": lambda file, rng: file.write_bytes(b""),
    "remove": lambda file, rng: file.unlink(),
    "noise": noise,
    "folder": folder_instead,
    "another": another,
}


def files(run: Path) -> list[str]:
    return sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file())


def numbers(run: Path) -> tuple[Any, ...]:
    """Everything that a run gives: rows, client rows of every evaluated round, the model."""
    log = round_log.read_log(run)
    rows = [{k: v for k, v in row.items() if not k.startswith(toy.VOLATILE)} for row in log.rows.values()]
    clients = [
        [{k: v for k, v in c.items() if k != "seconds"} for c in round_log.read_clients(run, r)] for r in (2, 4, 6)
    ]
    model = load_tree(run / "model", "model")
    return (
        rows,
        clients,
        {k: np.asarray(v).tobytes() for k, v in model.items() if not isinstance(v, dict)},
        sorted(model),
    )


def ends_well(what: Callable[[], Any]) -> Any:
    """Return what a command returns, None where it ends with a sentence; anything else is an error."""
    try:
        return what()
    except RayfedError as e:
        assert e.exit_code in (2, 4)
        assert len(str(e)) > 20 and "Traceback" not in str(e), e
        return None


def try_harm(folders: Folders, kind: str, name: str, harm: str, seed: str, tmp_path: Path) -> None:
    source = getattr(folders, kind)
    run = tmp_path / source.name
    shutil.copytree(source, run)
    HARMS[harm](run / name, random.Random(seed))
    (entry,) = list_runs(tmp_path) or [None]
    assert entry is None or entry["status"]
    ends_well(lambda: load(run).runs[0].clients)
    done = ends_well(lambda: resume_local(run))
    if done is None:
        return
    assert isinstance(done, Finished) and done.summary["status"] == "done"
    assert numbers(run) == numbers(folders.done)
    assert load(run).runs[0].final("accuracy/global") == load(folders.done).runs[0].final("accuracy/global")
    noted = [e["note"] for e in read_events(run) if e["kind"] == "set aside"]
    assert noted == [n for n in done.summary["notes"] if n in noted], "the summary has every sentence"


def sound_cases(folders: Folders) -> list[tuple[str, str, str]]:
    return [(kind, name, harm) for kind in folders._fields for name in files(getattr(folders, kind)) for harm in HARMS]


def test_some_harms(folders: Folders, tmp_path: Path) -> None:
    """Drawn; `test_every_harm_to_every_file` is all of them."""
    for i, (kind, name, harm) in enumerate(random.Random(0).sample(sound_cases(folders), 24)):
        (tmp_path / str(i)).mkdir()
        try:
            try_harm(folders, kind, name, harm, f"{i}", tmp_path / str(i))
        except Exception as e:
            raise AssertionError(f"{kind} {name} {harm}: {type(e).__name__}: {e}") from e


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_harm_to_every_file(folders: Folders, tmp_path: Path) -> None:
    fresh = str(random.SystemRandom().random()) if FRESH else ""
    wrong = []
    for i, (kind, name, harm) in enumerate(sound_cases(folders)):
        for again in range(4 if harm in ("flip", "cut") else 1):
            where = tmp_path / f"{i}-{again}"
            where.mkdir()
            try:
                try_harm(folders, kind, name, harm, f"{fresh}{i}-{again}", where)
            except Exception as e:
                wrong.append(f"{kind} {name} {harm} {fresh}{i}-{again}: {type(e).__name__}: {e}")
            shutil.rmtree(where, ignore_errors=True)
    assert not wrong, "\n".join(wrong)
