"""What timing chose: one value, which every run that goes on takes over as it is."""

from __future__ import annotations

import json
import types
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rayfed.config.load import load_config
from rayfed.config.schema import Config
from rayfed.engine import cohorts
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.errors import RunFailed
from rayfed.execute.choice import Choice
from rayfed.execute.tuning import autotune
from rayfed.execute.tuning.autotune import Timing
from rayfed.execute.tuning.kernels import Kernels
from rayfed.launch import start
from rayfed.partition import Federation
from rayfed.storage.events import read_events
from rayfed.storage.owner import Owner
from tests import toy
from tests.unit.execute.convolutions import BOTH, CNN, FED, at_commits

CHOICE = Choice("vmap", 4, "server", "onednn", True)
OPEN = Choice("auto", "auto", "auto", "auto", "auto")
NAMES = [f.name for f in fields(Choice) if f.name != "dtype"]  # of `resources`
OPTIONS = (
    "--set resources.executor=vmap --set resources.cohort=4 --set resources.visits=server "
    "--set resources.matmul=onednn --set resources.channels_last=true"
)


def config(**resources: Any) -> Config:
    return toy.config(executor="auto", resources={"cohort": "auto", **resources})


def kept(path: Path) -> Choice:
    return Choice.from_config(yaml.safe_load((path / "config.yaml").read_text()))


def test_it_closes_what_a_config_leaves_open() -> None:
    assert Choice.from_config(config().to_dict()) == OPEN
    made = CHOICE.apply(config())
    assert Choice.from_config(made.to_dict()) == CHOICE
    assert made.with_resources(**{n: "auto" for n in NAMES}) == config(), "and nothing else"
    assert OPEN.apply(made) == made and replace(CHOICE, executor="loop").apply(made) == made


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
def test_a_type_that_is_left_open_is_closed_too(dtype: str) -> None:
    chosen, asked = replace(CHOICE, dtype=dtype), toy.config(executor="auto", dtype="auto")
    made = chosen.apply(asked)
    assert made.task.dtype == dtype and Choice.from_config(made.to_dict()).dtype == dtype
    assert chosen.apply(asked.with_dtype("float64")).task.dtype == "float64"
    assert ("--set task.dtype=bf16" in chosen.as_options()) == (dtype == "bf16")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_config_sets_stays(name: str) -> None:
    value = {"executor": "loop", "cohort": 3, "visits": "actors", "matmul": "torch", "channels_last": False}[name]
    made = Choice.from_config(CHOICE.apply(config().with_resources(**{name: value})).to_dict())
    assert made == replace(CHOICE, **{name: value})


def test_its_options_repeat_it(tmp_path: Path) -> None:
    assert CHOICE.as_options() == OPTIONS
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(config().to_dict()))
    again = load_config(file, OPTIONS.replace("--set ", "").split())
    assert isinstance(again, Config) and Choice.from_config(again.to_dict()) == CHOICE


def test_what_is_in_effect_where_nothing_was_timed() -> None:
    c = toy.config(executor="loop", resources={"cohort": "auto", "channels_last": True})
    assert Choice.in_effect(c, 5) == Choice("loop", 5, "auto", "torch", True)
    assert Choice.in_effect(c.with_resources(executor="vmap", matmul="onednn"), 5) == Choice(
        "vmap", 5, "auto", "onednn", False
    )


# -- a run chooses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "asked", "kept"),
    [
        ((1.0, 1e-5), {"cohort": "auto"}, ("vmap", 7, "server")),
        ((1e-5, 1.0), {"cohort": "auto"}, ("loop", 7, "server")),
        ((1.0, 1e-2), {"cohort": "auto"}, ("vmap", 4, "actors")),
        ((1.0, 1e-5), {"cohort": "auto", "visits": "actors"}, ("vmap", 7, "actors")),
        ((1.0, 1e-2), {"cohort": "auto", "visits": "server"}, ("vmap", 4, "server")),
        ((1.0, 1e-5), {"cohort": 7}, ("vmap", 7, "server")),
        ((1.0, 1e-2), {"cohort": 7}, ("vmap", 7, "actors")),
        ((1.0, 1e-5), {"cohort": 6}, ("vmap", 6, "actors")),
    ],
)
def test_a_round_of_little_work_is_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], asked: Any, kept: Any
) -> None:
    chosen = Timing({"loop": seconds[0], "vmap": seconds[1]}, {"loop": Kernels(), "vmap": Kernels()})
    monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: chosen)
    lent: list[Any] = []
    monkeypatch.setattr(LocalPool, "adopt", lambda pool, run, res: lent.append(res))
    ran = toy.run_folder("fedavg", tmp_path, executor="auto", rounds=1, resources=asked)
    found = yaml.safe_load((ran.folder.path / "config.yaml").read_text())["resources"]
    assert (found["executor"], found["cohort"], found["visits"]) == kept
    assert [(r.config.resources.executor, r.config.resources.cohort) for r in lent] == [kept[:2]] * (
        kept[2] == "server"
    )


def test_what_is_to_repeat_itself_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same choice on every machine, and a note that names the one option."""
    monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: pytest.fail("it was timed"))
    asked = {"deterministic": True, "cohort": "auto"}
    ran = toy.run_folder("fedavg", tmp_path, executor="auto", rounds=1, resources=asked, dtype="auto")
    found = yaml.safe_load((ran.folder.path / "config.yaml").read_text())
    kept = [found["resources"][n] for n in ("executor", "cohort", "visits", "matmul", "channels_last")]
    assert [*kept, found["task"]["dtype"]] == ["vmap", 7, "server", "torch", False, "float32"]
    notes = json.loads((ran.folder.path / "summary.json").read_text())["notes"]
    assert "to repeat: --set resources.deterministic=true" in notes


def test_what_a_config_sets_is_not_fixed(tmp_path: Path) -> None:
    asked = {"deterministic": True, "matmul": "onednn"}
    ran = toy.run_folder("fedavg", tmp_path, executor="loop", rounds=1, resources=asked)
    found = yaml.safe_load((ran.folder.path / "config.yaml").read_text())["resources"]
    assert (found["executor"], found["matmul"]) == ("loop", "onednn")


def test_visits_stay_with_actors_that_have_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Timing({"loop": 1.0, "vmap": 1e-5}, {"loop": Kernels(), "vmap": Kernels()})
    monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: chosen)
    pool = LocalPool()
    pool.adopts = False
    ran = toy.run_folder("fedavg", tmp_path, executor="auto", rounds=1, pool=pool, resources={"cohort": "auto"})
    found = yaml.safe_load((ran.folder.path / "config.yaml").read_text())["resources"]
    assert (found["cohort"], found["visits"]) == (7, "actors")


def test_visits_stay_with_the_actors_where_a_round_is_several_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent: list[str] = []
    monkeypatch.setattr(LocalPool, "adopt", lambda pool, run, res: lent.append(run))
    toy.run_folder("fedavg", tmp_path / "a", executor="vmap", rounds=1)
    assert not lent
    ran = toy.run_folder("fedavg", tmp_path / "b", executor="vmap", rounds=1, resources={"visits": "server"})
    assert lent == [ran.folder.run_id]


@pytest.mark.parametrize("step", [1e-5, 1e-2])
def test_under_a_set_executor_calls_are_chosen_by_estimate_and_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """Never by timing; written into config.yaml, with the same bits as with those settings; a resume does not estimate again."""
    monkeypatch.setattr(autotune, "time_executors", None)
    monkeypatch.setattr(cohorts, "estimate_step", lambda config, federation, task: step)
    ran = toy.run_folder("fedavg", tmp_path / "open", executor="vmap", resources={"cohort": "auto"}, rounds=2)
    wanted = ("vmap", 7, "server") if step < 1e-3 else ("vmap", 4, "actors")
    made = kept(ran.folder.path)
    assert (made.executor, made.cohort, made.visits) == wanted and (made.matmul, made.channels_last) == ("torch", False)
    (event,) = [e for e in read_events(ran.folder.path) if e["kind"] == "executor"]
    assert (event["chosen"], event["cohort"], event["visits"], event["judged_by"]) == (*wanted, "estimate")
    assert event["threads"] == torch.get_num_threads()
    resources = {"cohort": wanted[1], "visits": wanted[2]}
    same = toy.run_folder("fedavg", tmp_path / "set", executor="vmap", resources=resources, rounds=2)
    assert same.rows == ran.rows and not [e for e in read_events(same.folder.path) if e["kind"] == "executor"]
    monkeypatch.setattr(cohorts, "estimate_step", lambda config, federation, task: 1e-2 - step)
    ended = start.resume_local(ran.folder.path, sets=["rounds=3"])
    assert kept(ended.path) == made and ended.summary["rounds"] == 3


def test_a_run_keeps_what_was_chosen_and_says_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Timing({"loop": 1.0, "vmap": 2.0}, {"loop": BOTH, "vmap": Kernels()})
    monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: chosen)
    ran = toy.run_folder("fedavg", tmp_path, executor="auto", rounds=1, task=CNN, federation=FED)
    path = ran.folder.path
    kept = yaml.safe_load((path / "config.yaml").read_text())["resources"]
    assert (kept["executor"], kept["matmul"], kept["channels_last"]) == ("loop", "onednn", True)
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    (event,) = [e for e in events if e["kind"] == "executor"]
    how = " ".join(
        f"--set resources.{said}"
        for said in ("executor=loop", "cohort=2", "visits=actors", "matmul=onednn", "channels_last=true")
    )
    assert event["kernels"] == BOTH._asdict() and event["repeat"] == how
    summary = json.loads((path / "summary.json").read_text())
    assert f"to repeat: {how}" in summary["notes"]


def test_an_interrupted_study_goes_on_with_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(by: Kernels) -> None:
        chosen = Timing({"loop": 1.0, "vmap": 2.0}, {"loop": by, "vmap": Kernels()})
        monkeypatch.setattr(autotune, "time_executors", lambda res, cohort: chosen)

    raw = {**toy.TOY, "task": CNN, "resources": {"executor": "auto", "gpus_per_actor": 0}, "method": "fedavg"}
    raw["federation"] = {**raw["federation"], "groups": "none"}
    launcher = start.LocalLauncher()

    def watch(state: dict[str, Any]) -> None:
        if state["round"] == 1:
            launcher.stop()

    choose(BOTH)
    with pytest.raises(RunFailed):
        start.start_request(load_config({**raw, "arms": {"a": {}, "b": {}}}), launcher, out=tmp_path, watch=watch)
    choose(Kernels())
    (path,) = tmp_path.iterdir()
    seen = at_commits(monkeypatch)
    assert start.resume_local(path).status == "done"
    assert seen == [BOTH, Kernels(), Kernels()]  # the second round of the first arm, both of the other


def test_each_runs_open_settings_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pool serves many runs, and what one of them leaves open another has set."""
    asked: list[str] = []

    def tried(res: Resident, cohort: int) -> Timing:
        asked.append(res.config.resources.matmul)
        by = Kernels("onednn" if asked[-1] == "auto" else asked[-1])
        return Timing({"loop": 1.0, "vmap": 2.0}, {"loop": by, "vmap": by})

    monkeypatch.setattr(autotune, "time_executors", tried)
    pool, kept = LocalPool(), []
    for n, matmul in enumerate(("auto", "torch", "auto")):
        ran = toy.run_folder(
            "fedavg", tmp_path / str(n), executor="auto", rounds=1, pool=pool, resources={"matmul": matmul}
        )
        kept.append(yaml.safe_load((ran.folder.path / "config.yaml").read_text())["resources"]["matmul"])
    assert asked == ["auto", "torch"] and kept == ["onednn", "torch", "onednn"]


# -- runs that go on -------------------------------------------------------------------------------------------------------

TIMED = Timing({"loop": 1.0, "vmap": 1e-5}, {"loop": Kernels("onednn", True), "vmap": Kernels("onednn", False)})
OTHERWISE = Timing({"loop": 1.0, "vmap": 2.0}, {"loop": Kernels(), "vmap": Kernels()})
CHOSEN = Choice("vmap", 7, "server", "onednn", False)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what timing gives from now on; the timings so far are counted in its `count`."""

    def now(seconds: Timing) -> None:
        def give(res: Any, cohort: int) -> Timing:
            now.count += 1  # type: ignore[attr-defined]
            return seconds

        monkeypatch.setattr(autotune, "time_executors", give)

    now.count = 0  # type: ignore[attr-defined]
    now(TIMED)
    return now


def test_an_interrupted_study_keeps_all_five(tmp_path: Path, timed: Any) -> None:
    raw = {**toy.TOY, "resources": {"executor": "auto", "gpus_per_actor": 0}, "method": "fedavg", "seeds": [1]}
    launcher = start.LocalLauncher()
    with pytest.raises(RunFailed):
        start.start_request(
            load_config({**raw, "arms": {"a": {}}}), launcher, out=tmp_path, watch=stop_after_one(launcher)
        )
    (path,) = tmp_path.iterdir()
    timed(OTHERWISE)
    seen = []
    real = start.LocalLauncher.execute

    class Launcher(start.LocalLauncher):
        def execute(self, config: Config, *rest: Any) -> Any:
            seen.append(Choice.from_config(config.to_dict()))
            return real(self, config, *rest)

    assert start.resume_request(path, Launcher()).status == "done"
    assert seen == [CHOSEN] == [kept(path / "a" / "seed-1")] and timed.count == 1


def test_a_resumed_study_does_what_it_is_asked(tmp_path: Path, timed: Any) -> None:
    """An option outweighs what was chosen."""
    raw = {**toy.TOY, "resources": {"executor": "auto", "gpus_per_actor": 0}, "method": "fedavg", "seeds": [1]}
    launcher = start.LocalLauncher()
    with pytest.raises(RunFailed):
        start.start_request(
            load_config({**raw, "arms": {"a": {}}}), launcher, out=tmp_path, watch=stop_after_one(launcher)
        )
    (path,) = tmp_path.iterdir()
    start.resume_local(path, sets=["resources.executor=debug"])
    assert json.loads((path / "a" / "seed-1" / "summary.json").read_text())["executor"] == "debug"


def stop_after_one(launcher: start.LocalLauncher) -> Any:
    def watch(state: dict[str, Any]) -> None:
        if state["round"] == 1:
            launcher.stop()

    return watch


class Remote:
    """An actor in this process: `actor.method.remote(...)` gives the answer itself."""

    def __init__(self, actor: Any):
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        return types.SimpleNamespace(remote=getattr(self.actor, name))


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a sweep's trial without Ray: of a point, and of a pointer where it goes on."""
    from tune_spaces.sweep import trial as module
    from tune_spaces.sweep.data_broker import DataBroker
    from tune_spaces.sweep.messages import TrialPointer, TrialRequest

    monkeypatch.setattr(module.ray, "get", lambda ref: ref)
    monkeypatch.setattr(module.SweepTrial, "_start_pool", lambda self: None)
    monkeypatch.setattr(Federation, "from_numpy", classmethod(lambda cls, made: made))
    monkeypatch.setattr(DataBroker, "split", lambda self, values: [toy.federation(Config.from_dict(values))])
    base = toy.config("fedavg", executor="auto", rounds=4, resources={"cohort": "auto"}, storage={"keep": 9}).to_dict()
    plan: Any = None
    request = TrialRequest(str(tmp_path), base, {}, (1,), "loss/global", "min", plan, True, {}, {}, "s")
    broker = Remote(DataBroker(request, Owner.me()))

    def make(number: str, point: dict[str, Any], pointer: tuple[str, int] | None = None) -> Any:
        made = module.SweepTrial.__new__(module.SweepTrial)
        made.broker, made.request, made.home = broker, request, tmp_path
        made.pool, made._splits = LocalPool(), {}
        made.pool.locate_actors = lambda: []
        made._trial_info = types.SimpleNamespace(trial_id=f"x_{number}")
        made._begin({"point": point})
        made.pointer = TrialPointer(*pointer) if pointer else None
        return made

    return make


def test_a_resumed_trial_and_a_clone_keep_all_five(trial: Any, tmp_path: Path, timed: Any) -> None:
    first = trial("00000", {"local.optimizer.lr": 0.1})
    assert first.step()["round"] == 1
    assert kept(tmp_path / "trials" / "00000" / "seed-1") == CHOSEN
    first._end_runs()
    timed(OTHERWISE)

    again = trial("00000", {"local.optimizer.lr": 0.1}, ("trials/00000", 1))
    clone = trial("00001", {"local.optimizer.lr": 0.2}, ("trials/00000", 1))
    own = trial("00002", {"local.optimizer.lr": 0.2, "resources.executor": "loop"}, ("trials/00000", 1))
    for of, choice in {again: CHOSEN, clone: CHOSEN, own: replace(CHOSEN, executor="loop")}.items():
        assert of.step()["round"] == 2
        (runner,) = of.runners.values()
        assert Choice.from_config(runner.config.to_dict()) == choice == kept(runner.folder.path)
    (runner,) = clone.runners.values()
    assert runner.config.local.optimizer.lr == 0.2

    clone._end_runs()
    later = trial("00001", {"local.optimizer.lr": 0.2}, (clone.folder.relative, 2))
    assert later.step()["round"] == 3
    (runner,) = later.runners.values()
    assert Choice.from_config(runner.config.to_dict()) == CHOSEN
    assert timed.count == 1, "nothing is timed again"
