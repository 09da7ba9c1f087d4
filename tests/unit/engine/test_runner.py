"""The controller of a run: advanced piece by piece, left, cloned; its rounds, commits, endings and live status."""

from __future__ import annotations

import errno
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayfed import tree
from rayfed.config import watchdog
from rayfed.engine import runner as runner_module
from rayfed.engine.client_states import ClientStates
from rayfed.engine.failures import ClientFailed
from rayfed.engine.pool import LocalPool
from rayfed.engine.runner import Runner
from rayfed.errors import RunFailed
from rayfed.launch.start import run_local
from rayfed.storage.events import read_events
from rayfed.storage.listing import list_runs
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.tree_files import load_tree
from tests import toy
from tests.unit.engine.asks import BAD, policy

LONG = {"rounds": 5, "storage": {"snapshot_every": 2, "keep": 9}}


def seen(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if not k.startswith(toy.VOLATILE)} for r in folder.metrics().to_pylist()]


def test_a_run_in_pieces_is_the_run(tmp_path: Path) -> None:
    whole = toy.run_folder("scaffold", tmp_path / "whole", **LONG)
    c = toy.config("scaffold", **LONG)
    folder = RunFolder.create(tmp_path / "pieces", c.to_dict(), owner=Owner.me())
    runner = Runner(c, toy.federation(c), LocalPool(), folder)
    runner.prepare()
    assert [runner.advance(1), runner.advance(3), runner.advance(3)] == [1, 3, 3]
    assert (folder.path / "snapshots" / "round-000003").is_dir(), "where a piece ends, it can be cloned"
    assert runner.advance(99) == 5 and runner.finish().status == "done"
    assert seen(folder) == whole.rows and json.loads((folder.path / "summary.json").read_text())["rounds"] == 5


def test_a_piece_can_be_left(tmp_path: Path) -> None:
    c = toy.config("fedavg", **LONG)
    folder = RunFolder.create(tmp_path, c.to_dict(), owner=Owner.me())
    runner = Runner(c, toy.federation(c), LocalPool(), folder)
    runner.prepare()
    runner.advance(3)
    assert runner.finish() == ("stopped", 3) and not (folder.path / "summary.json").exists()
    again = Runner(c, toy.federation(c), LocalPool(), RunFolder.open(folder.path, owner=Owner.me()))
    assert again.execute() == ("done", 5)
    assert seen(folder) == toy.run_folder("fedavg", tmp_path / "whole", **LONG).rows


def test_a_clone_goes_on_as_the_run_did(tmp_path: Path) -> None:
    """Scaffold keeps states at clients: they must be in the clone too."""
    whole = toy.run_folder("scaffold", tmp_path / "whole", **LONG)
    c = toy.config("scaffold", **LONG)
    folder = RunFolder.clone(whole.folder.path, 2, tmp_path / "clone", c.to_dict(), owner=Owner.me())
    assert [r["round"] for r in folder.metrics().to_pylist()] == [1, 2] and len(folder.clients(2)) == 14
    assert folder.run_id != whole.folder.run_id
    assert Runner(c, toy.federation(c), LocalPool(), folder).execute() == ("done", 5)
    assert seen(folder) == whole.rows
    store = ClientStates(LocalPool())
    store.load(folder.path / "snapshots" / "round-000005", folder.path / "segments")
    assert {k: v.keys() for k, v in toy.states(store).items()} == {k: v.keys() for k, v in whole.clients.items()}
    with pytest.raises(RunFailed, match="round 3"):
        RunFolder.clone(whole.folder.path, 3, tmp_path / "other", c.to_dict(), owner=Owner.me())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clone", "whole"], "nothing half-made"


# -- rounds and endings ------------------------------------------------------------------------------------------------


def test_a_run_counts_its_dropped_clients(odd: str, tmp_path: Path) -> None:
    spec = {"name": odd, "how": "nan delta", "bad": BAD}
    ran = toy.run_folder(spec, tmp_path, **policy("drop"))
    draws = toy.simulate(spec, **policy("drop")).fed.drawn
    assert [r["clients/dropped"] for r in ran.rows] == [int(BAD in d.ids) for d in draws]
    assert ran.rows[0]["clients/dropped"] == 1 and ran.rows[0]["clients/visits"] == 6


@pytest.mark.parametrize("how", ["server nan", "server inf"])
def test_a_server_state_that_is_not_finite_ends_the_run(odd: str, how: str, tmp_path: Path) -> None:
    with pytest.raises(
        RunFailed, match=r"round 2: .* NaN or infinity in model/head.bias; the state of round 1 is kept"
    ):
        toy.run_folder({"name": odd, "how": how}, tmp_path, rounds=2)


def test_a_server_state_whose_sum_overflows_is_finite(odd: str, tmp_path: Path) -> None:
    ran = toy.run_folder({"name": odd, "how": "server large"}, tmp_path, rounds=2)
    assert ran.state["model"]["head.bias"].sum() == math.inf and len(ran.rows) == 2


def test_a_stop_that_comes_while_a_round_commits_waits_for_a_snapshot(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rounds": 6, "storage": {"snapshot_every": 10}}
    whole = toy.run_folder("scaffold", tmp_path / "whole", **changes)
    part = toy.run_folder("scaffold", tmp_path / "part", stop_after=1, **changes)  # asked when round 1 has just ended
    assert tuple(part.ending) == ("stopped", 2) and len(part.rows) == 2
    rest = toy.run_folder("scaffold", tmp_path / "part", resume=True, **changes)
    assert rest.rows == whole.rows and tree.same(rest.state, whole.state)


def test_a_run_that_fails_says_how_to_go_on(odd: str, tmp_path: Path) -> None:
    with pytest.raises(ClientFailed) as raised:
        toy.run_folder({"name": odd, "how": "raise", "bad": BAD}, tmp_path, executor="debug")
    (path,) = [p for p in tmp_path.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))]
    assert "It would fail there again" in str(raised.value) and "rayfed resume" not in str(raised.value)
    arguments = load_tree(path / "debug", f"client-{BAD}-round-1")
    assert int(arguments["info"]["client"]) == BAD and "head.bias" in arguments["shared"]["model"]
    assert "bad luck" in (path / "events.jsonl").read_text()


@pytest.mark.parametrize("how", ["shape", "leaf", "undeclared", "raise", "nan delta", "server nan"])
def test_nobody_is_sent_to_resume_what_would_fail_again(odd: str, how: str, tmp_path: Path) -> None:
    """A client's wrong shapes, its exception, a NaN: the same keys on the same data lead there again."""
    with pytest.raises(RunFailed) as raised:
        toy.run_folder({"name": odd, "how": how, "bad": BAD}, tmp_path, storage={"snapshot_every": 9})
    said = str(raised.value)
    assert raised.value.certain and "It would fail there again" in said and "rayfed resume" not in said
    if isinstance(raised.value, ClientFailed):
        assert "To look at this client: rayfed run " in said and "resources.executor=debug" in said
    (listed,) = list_runs(tmp_path)
    assert listed["status"] == "failed (would fail there again: its code or settings have to change)"


def test_a_client_is_looked_at_from_the_last_snapshot(odd: str, tmp_path: Path) -> None:
    with pytest.raises(ClientFailed) as raised:
        toy.run_folder({"name": odd, "how": "nan late", "bad": BAD}, tmp_path, rounds=3)
    assert "To look at this client: rayfed resume " in str(raised.value)


def test_what_may_pass_is_resumed(odd: str, tmp_path: Path) -> None:
    """Memory, disk and network are not the program's."""
    with pytest.raises(ClientFailed, match=r"continue with: rayfed resume ") as raised:
        toy.run_folder({"name": odd, "how": "first"}, tmp_path)
    assert not raised.value.certain and "resume with: rayfed resume" in list_runs(tmp_path)[0]["status"]


def prepared(where: Path, **more: Any) -> Runner:
    c = toy.config("scaffold", rounds=3)
    runner = Runner(c, toy.federation(c), LocalPool(), RunFolder.create(where, c.to_dict(), owner=Owner.me()), **more)
    runner.prepare()
    return runner


def test_a_run_that_is_not_prepared_has_no_state(tmp_path: Path) -> None:
    c = toy.config()
    runner = Runner(c, toy.federation(c), LocalPool(), RunFolder.create(tmp_path, c.to_dict(), owner=Owner.me()))
    with pytest.raises(RuntimeError, match="not prepared"):
        runner.advance(1)
    run = runner.prepare()
    assert run is runner.prepared and (run.first, run.reached, run.snapshotted, run.early) == (0, 0, True, False)


def test_a_round_moves_the_run_only_when_it_is_committed(tmp_path: Path) -> None:
    def refuse() -> None:
        raise RunFailed("nothing is committed")

    runner = prepared(tmp_path, before_commit=refuse)
    run, before = runner.prepared, runner.prepared.state
    result = runner._compute(1)
    assert result.round == 1 and len(result.client_rows or []) == 14 and "accuracy/global" in result.row
    assert not tree.same(result.state, before) and run.state is before and run.reached == 0
    with pytest.raises(RunFailed, match="nothing is committed"):
        runner.advance(1)
    assert run.state is before and run.reached == 0 and runner.folder.metrics().num_rows == 0


def test_what_is_left_is_judged_by_the_quickest_round_after_the_first_two(tmp_path: Path) -> None:
    c = toy.config("scaffold", rounds=7)
    runner = Runner(c, toy.federation(c), LocalPool(), RunFolder.create(tmp_path, c.to_dict(), owner=Owner.me()))
    runner.prepare()
    for r, seconds, left in ((1, 0.1, 0.0), (2, 0.1, 0.0), (3, 4.0, 16.0), (4, 2.0, 6.0), (5, 3.0, 4.0)):
        result = runner._compute(r)
        runner._commit(replace(result, row={**result.row, "time/round": seconds}), last=7)
        assert runner.seconds_left() == left


@pytest.mark.parametrize(
    ("name", "by_rule"),
    [("lazy", False), ("lstm", False), ("branch", False), ("centred", False), ("lstm", True), ("branch", True)],
)
def test_what_vmap_cannot_run_is_run_by_loop(wrong_nets: Any, name: str, by_rule: bool, tmp_path: Path) -> None:
    changes = toy.merge(wrong_nets(name), {"resources": {"cohort": "auto", "deterministic": by_rule}})
    done = run_local(toy.config("fedavg", executor="auto", **changes), out=tmp_path)
    assert done.status == "done"


# -- the live status ---------------------------------------------------------------------------------------------------


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run whose clock stands still; `written` holds the rounds of its state.json, `heard` those that its caller heard of."""
    written: list[tuple[str, int]] = []
    heard: list[int] = []
    folder: Any = SimpleNamespace(
        run_id="r", path=Path("r"), event=None, state=lambda **s: written.append((s["status"], s["round"]))
    )
    nothing: Any = None  # neither data nor actors are asked for here
    made: Any = Runner(toy.config(), nothing, nothing, folder, progress=lambda s: heard.append(s["round"]))
    made.written, made.heard, made.now = written, heard, 100.0
    monkeypatch.setattr(runner_module.time, "perf_counter", lambda: made.now)
    return made


def publish(runner: Any, status: str, round: int) -> None:
    runner.status.update(status=status, round=round)
    runner._write_status()


def test_the_state_file_is_written_a_few_times_a_second_and_at_the_end(still: Any) -> None:
    for r in (1, 2, 3):
        publish(still, "running", r)
    assert still.written == [("running", 1)] and still.heard == [1, 2, 3]
    still.now += 1.5 * runner_module.LIVE_S
    publish(still, "running", 4)
    publish(still, "running", 5)
    publish(still, "done", 5)
    assert still.written == [("running", 1), ("running", 4), ("done", 5)]


# -- what ends no run --------------------------------------------------------------------------------------------------


def test_a_full_disk_fails_no_committed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the live status nor the models nor a tracker can be written; rounds and summary can."""
    from rayfed.storage import run_folder

    write = run_folder.durable_write

    def full(path: Path, *parts: Any, **more: Any) -> None:
        if path.name in ("state.json", "metrics.parquet"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *parts, **more)

    def models(self: Runner, *given: Any) -> None:
        (self.folder.path / "model").mkdir()
        (self.folder.path / "model" / "half.safetensors").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "durable_write", full)
    monkeypatch.setattr(run_folder.round_log, "durable_write", full)
    monkeypatch.setattr(Runner, "_save_models", models)
    ran = toy.run_folder("fedavg", tmp_path)
    path = ran.folder.path
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "done" and len(ran.rows) == 2 and not (path / "model").exists()
    notes = [n for n in summary["notes"] if "could not be written" in n]
    assert [n.partition(" could")[0] for n in notes] == ["the live status", "the models"]
    assert f"rayfed resume {path}" in notes[1] and all("No space left" in n for n in notes)
    assert [e["text"] for e in read_events(path) if e["kind"] == "given up"] == notes


def test_what_a_run_waits_for_is_said(odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PATIENCE_S", 0.1)
    c = toy.config(
        {"name": odd, "how": "hang", "bad": BAD}, failures={"client_error": "drop", "client_timeout_s": 3}, rounds=1
    )
    folder = RunFolder.create(tmp_path, c.to_dict(), owner=Owner.me())
    live: list[dict[str, Any]] = []
    Runner(c, toy.federation(c), LocalPool(), folder, progress=live.append).execute()
    notes = [e["text"] for e in read_events(folder.path) if e["kind"] == "waiting"]
    hangs = rf"nothing has ended for \d+ s in round 1 \(clients at work: .*\b{BAD}\b.*; visit 'train'; .*odd"
    (found, *_) = [n for n in notes if re.match(hangs, n)]
    shown = [s.get("waiting") for s in live]
    assert None in shown[shown.index(found) :], "what has ended is not waited for any more"
