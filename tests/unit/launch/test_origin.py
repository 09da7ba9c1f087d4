"""A resume under other settings, data or code than the run was made from is refused, or noted where that is accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayfed.config.load import load_config
from rayfed.config.schema import Config, Study
from rayfed.errors import ConfigError
from rayfed.launch import start
from rayfed.launch.origin import code_digests
from rayfed.report.subject import load
from rayfed.storage.events import read_events
from rayfed.storage.provenance import Provenance
from rayfed.storage.round_log import read
from tests import toy

DATA = """
import numpy as np
from rayfed.data import Dataset, Part

SCALE = 1.0

def make(seed):
    x = np.random.default_rng(seed).normal(size=(120, 4)).astype("float32") * SCALE
    y = (x[:, 0] > 0).astype("int64")
    return Dataset("own", Part(x[:90], y[:90]), Part(x[90:], y[90:]), 2, ("a", "b"), "tabular")
"""
METHOD = """
from rayfed.methods.fedavg import FedAvg

class Mine(FedAvg):
    '''FedAvg under another name.'''
"""


@pytest.fixture(autouse=True)
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds."""
    monkeypatch.setattr("rayfed.report.write_report", lambda path: path)


@pytest.fixture
def own(tmp_path: Path) -> Config:
    """A config of own data and an own method."""
    (tmp_path / "data.py").write_text(DATA)
    (tmp_path / "method.py").write_text(METHOD)
    made = load_config(
        {
            **toy.config(rounds=4).to_dict(),
            "method": {"name": f"{tmp_path}/method.py:Mine"},
            "task": {"data": f"{tmp_path}/data.py:make", "model": "linear"},
            "federation": {"clients": 6},
        }
    )
    assert isinstance(made, Config)
    return made


def interrupted(request: Config | Study, out: Path) -> Path:
    """Run two rounds of a run or of a study's first run, and return its folder."""
    launcher = start.LocalLauncher()

    def watch(state: dict[str, Any]) -> None:
        if state["round"] == 2:
            launcher.stop()

    with pytest.raises(Exception, match="stopped"):
        start.start_request(request, launcher, out=out, watch=watch)
    (path,) = out.iterdir()
    return path


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_run_knows_its_files(own: Config, tmp_path: Path) -> None:
    found = code_digests(own.to_dict())
    assert set(found) == {f"{tmp_path}/data.py", f"{tmp_path}/method.py", "rayfed.methods.fedavg"}
    assert set(code_digests({"method": "fedavgm"})) >= {"rayfed.methods.fedavgm"}
    study = {"method": {"name": "fedavg"}, "arms": {"a": {"method": {"name": "scaffold"}}, "b": None}}
    assert {"rayfed.methods.fedavg", "rayfed.methods.scaffold"} <= set(code_digests(study))


CHANGES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "config": (
        lambda home, run: edited(run / "config.yaml", "lr: 0.1", "lr: 0.2"),
        "config.yaml: local.optimizer.lr is 0.2 and was 0.1",
    ),
    "rounds by hand": (
        lambda home, run: edited(run / "config.yaml", "rounds: 4", "rounds: 5"),
        "rounds is 5 and was 4",
    ),
    "data": (
        lambda home, run: edited(home / "data.py", "SCALE = 1.0", "SCALE = 2.0"),
        "data: rows, labels or who holds what",
    ),
    "own code": (
        lambda home, run: edited(home / "method.py", "another name", "an other name"),
        "method.py was changed",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_other_settings_data_or_code_are_refused_unless_accepted(own: Config, tmp_path: Path, what: str) -> None:
    run = interrupted(own, tmp_path / "out")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    change, says = CHANGES[what]
    change(tmp_path, run)
    touched = {p: p.read_bytes() for p in before}
    for _ in range(2):
        with pytest.raises(ConfigError, match="--accept-changes") as refused:
            start.resume_local(run)
        assert says in str(refused.value) and str(run) in str(refused.value)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == touched, "nothing is written"
    done = start.resume_local(run, accept_changes=True)
    notes = [n for n in done.summary["notes"] if "accepted" in n]
    assert any(says in n for n in notes), done.summary["notes"]
    assert [e["note"] for e in read_events(run) if e["kind"] == "changed"] == notes
    assert set(notes) <= set(load(run).runs[0].notes), "the report shows the summary's notes"
    again = start.resume_local(run)  # it is what the run is made from by now
    assert [n for n in again.summary["notes"] if "accepted" in n] == notes


def test_an_unchanged_run_goes_on_without_a_word(own: Config, tmp_path: Path) -> None:
    run = interrupted(own, tmp_path / "out")
    known = Provenance.read(run)
    assert known is not None and known.split and len(known.code) == 3
    done = start.resume_local(run, sets=["rounds=5"])
    assert len(read(run)) == 5 and not [e for e in read_events(run) if e["kind"] in ("changed", "set aside")]
    assert not [n for n in done.summary["notes"] if "resume" in n]


def test_other_versions_are_noted(own: Config, tmp_path: Path) -> None:
    run = interrupted(own, tmp_path / "out")
    known = Provenance.read(run)
    assert known is not None
    (run / "provenance.json").write_bytes(replace(known, versions={**known.versions, "torch": "1.0"}).to_bytes())
    done = start.resume_local(run)
    (note,) = [n for n in done.summary["notes"] if "resumed with" in n]
    assert "torch" in note and "(was 1.0)" in note and "numpy" not in note


def test_a_lost_record_is_noted(own: Config, tmp_path: Path) -> None:
    run = interrupted(own, tmp_path / "out")
    (run / "provenance.json").unlink()
    done = start.resume_local(run)
    assert any("provenance.json is missing" in n for n in done.summary["notes"])
    assert Provenance.read(run) is not None


def test_a_study_is_asked_too(own: Config, tmp_path: Path) -> None:
    values = {**own.to_dict(), "rounds": 2, "seeds": [0, 1], "arms": {"a": {}, "b": {"local": {"epochs": 1}}}}
    study = load_config(values)
    assert isinstance(study, Study)
    path = interrupted(study, tmp_path / "out")
    edited(tmp_path / "data.py", "SCALE = 1.0", "SCALE = 2.0")
    with pytest.raises(ConfigError, match="data: rows, labels or who holds what"):
        start.resume_local(path)
    edited(tmp_path / "data.py", "SCALE = 2.0", "SCALE = 1.0")
    edited(path / "study.yaml", "lr: 0.1", "lr: 0.3")
    with pytest.raises(ConfigError, match=r"study\.yaml: local\.optimizer\.lr is 0\.3 and was 0\.1"):
        start.resume_local(path)
    (path / "study.yaml").unlink()
    done = start.resume_local(path)
    assert done.status == "done"
    notes = [n for arm in "ab" for s in (0, 1) for n in load(path / arm / f"seed-{s}").runs[0].notes]
    assert any("study.yaml: it is missing; written again" in n for n in notes)


def test_a_federation_has_a_digest_of_its_rows_and_owners() -> None:
    made = toy.federation(toy.config())
    again = replace(made, arrays={k: np.array(v) for k, v in made.arrays.items()})
    assert again.digest() == made.digest() == type(made).from_numpy(made.numpy()).digest()
    again.arrays["x"][3, 2] += 1e-6
    assert again.digest() != made.digest()
    assert replace(made, group=made.group[::-1]).digest() != made.digest()
    assert replace(made, notes=("another sentence",)).digest() == made.digest()
