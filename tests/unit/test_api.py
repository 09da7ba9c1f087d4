"""`rayfed.load`: tables, studies, and models ready to call - held against the scores that the run itself measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rayfed
from rayfed import partition, tree
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from tests import toy
from tests.conftest import ROOT


def made(method: toy.Spec, where: Path, **changes: Any) -> rayfed.Run:
    found = rayfed.load(toy.run_folder(method, where, **changes).folder.path)
    assert isinstance(found, rayfed.Run)
    return found


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pages: they take most of a tiny run's time."""
    monkeypatch.setattr("rayfed.report.write_report", lambda path: path)


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> rayfed.Run:
    return made({"name": "ifca", "clusters": 3}, tmp_path_factory.mktemp("ifca"), rounds=2)


@pytest.mark.parametrize(
    "method", ["fedavg", "local_only", "fedavg_finetune", {"name": "ifca", "clusters": 3}], ids=str
)
def test_a_clients_model_has_the_scores_of_the_run(method: toy.Spec, tmp_path: Path) -> None:
    """Also of one that is fine-tuned to be served: with all of a client's examples in one batch, the order of the draw,
    which is a new one, does not matter."""
    whole = {"batch_size": 64}
    run = made(method, tmp_path, seed=2, local=whole)
    split = toy.federation(toy.config(method, seed=2, local=whole))
    rows = run.clients().to_pylist()
    assert len(rows) == 14 and sum(r["unseen"] for r in rows) == 2
    for row in rows:
        if not row["test_examples"]:
            continue
        mine = split.test.rows[split.test.offsets[row["client"]] : split.test.offsets[row["client"] + 1]]
        logits = run.model(client=row["client"])(split.arrays["x"][mine])
        loss = torch.nn.functional.cross_entropy(logits, torch.as_tensor(split.arrays["y"][mine]))
        assert float(loss) == pytest.approx(row["loss"], rel=1e-5)


def test_the_global_model_has_the_global_score(tmp_path: Path) -> None:
    run = made("fedavg", tmp_path)
    split = toy.federation(toy.config())
    model = run.model()
    found = model(split.arrays["x"][split.pooled_test]).argmax(1).numpy() == split.arrays["y"][split.pooled_test]
    assert found.mean() == pytest.approx(run.metrics()["accuracy/global"].to_pylist()[-1])
    module = model.module()
    x = torch.randn(3, 8)
    assert torch.equal(module(x), model(x)) and not model(x).requires_grad
    with torch.no_grad():
        next(module.parameters()).add_(1.0)
    assert not torch.equal(module(x), model(x))  # a copy: what is trained on is not what was loaded
    assert tree.same(dict(model), dict(run.model()))


def test_experts(clustered: rayfed.Run) -> None:
    names = clustered.models()
    assert names == ["expert-0", "expert-1", "expert-2"]
    rows = clustered.clients().to_pylist()
    known = next(r for r in rows if r["cluster"] is not None)
    x = np.random.default_rng(0).normal(size=(4, 8))
    expert = clustered.model(cluster=known["cluster"])
    assert torch.equal(expert(x), clustered.model(f"expert-{known['cluster']}")(x))
    with pytest.raises(ConfigError, match="no model 'model'; there are: expert-0, expert-1, expert-2"):
        clustered.model()
    with pytest.raises(ConfigError, match="no model 'expert-7'"):
        clustered.model(cluster=7)


def test_what_is_wrong_is_an_error(clustered: rayfed.Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="client: 14 found, allowed: 0 to 13"):
        clustered.model(client=14)
    with pytest.raises(ValueError, match=r"inputs of shape \(4, 7\) found, needed: \(B, 8\)"):
        clustered.model(cluster=0)(np.zeros((4, 7)))
    with pytest.raises(ConfigError, match="round 9 has rows of clients"):
        clustered.clients(9)
    assert clustered.clients(1)["round"].to_pylist() == [1] * 14
    similar = clustered.path.with_name(clustered.path.name[:-1])
    with pytest.raises(ConfigError, match=f"neither a run folder .*did you mean '{clustered.path.name}'"):
        rayfed.load(similar)
    with pytest.raises(ConfigError, match="neither a run folder"):
        rayfed.load(tmp_path)


def test_before_the_end(tmp_path: Path) -> None:
    run = made("fedavg", tmp_path, rounds=3, stop_after=1)
    assert run.summary is None and run.models() == []
    with pytest.raises(ConfigError, match="the run has not ended"):
        run.model()
    assert run.model(client=0)(np.zeros((1, 8))).shape == (1, 4)  # of the newest snapshot


def test_overrides_as_a_mapping() -> None:
    plain = load_request("fedavg", ["rounds=3", "federation.clients=20", "method.name=scaffold"])
    assert load_request("fedavg", {"rounds": 3, "federation": {"clients": 20}, "method.name": "scaffold"}) == plain
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        load_request("fedavg", {"rouns": 3})


def test_images_are_called_as_images(tmp_path: Path) -> None:
    task = {"data": "digits", "model": {"name": "cnn"}}
    run = made("fedavg", tmp_path, rounds=1, task=task, federation={"groups": {"kind": "none"}, "per_round": 2})
    assert run.model().input_shape == (1, 8, 8)
    x = partition.build(toy.config(task=task, federation={"groups": {"kind": "none"}})).arrays["x"][:3]
    assert run.model()(x).shape == (3, 10)


def test_readme_names_the_page() -> None:
    assert "docs/python.md" in (ROOT / "README.md").read_text()


# -- the whole interface -----------------------------------------------------------------------------------------------


def test_the_interface_is_what_dir_shows() -> None:
    assert {"run", "sweep", "partition", "runs", "compare", "report", "start", "Callback", "Method"} <= set(dir(rayfed))
    assert set(dir(rayfed)) - {"__all__", "__doc__", "__version__"} == set(rayfed.__all__)
    assert all(hasattr(rayfed, name) for name in rayfed.__all__)


@pytest.mark.parametrize(
    "before", ["", "import rayfed.partition, rayfed.report", "from rayfed import partition; partition.build"]
)
def test_packages_that_are_functions_too(before: str) -> None:
    """Whichever was imported first."""
    code = f"{before}\nimport rayfed\nassert callable(rayfed.partition) and callable(rayfed.report)\nprint(rayfed.partition.build.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "build\n", done.stderr


def test_a_split(tmp_path: Path) -> None:
    (split,) = found = rayfed.partition(toy.TOY | {"method": "fedavg"}, sets={"seed": 3})
    assert split.numbers["clients"] == 14 and "dirichlet" in str(found) and "seed 3" in str(found)
    assert found.save(tmp_path / "a.pdf").read_bytes().startswith(b"%PDF") and "data:image/png" in found._repr_html_()
    assert (
        len(rayfed.partition({**toy.TOY, "method": "fedavg", "arms": {"a": {}, "b": {"federation": {"clients": 20}}}}))
        == 2
    )


def tiny(**more: Any) -> dict[str, Any]:
    return {**toy.TOY, "method": "fedavg", "rounds": 3, "evaluate": {"every": 2}, **more}


class Heard(rayfed.Callback):
    def __init__(self, stop_at: int = 0) -> None:
        self.calls: list[Any] = []
        self.stop_at = stop_at

    def on_round(self, run: rayfed.Run, row: dict[str, Any]) -> bool | None:
        self.calls.append((run.path.parent.name, row["round"]))
        return row["round"] == self.stop_at

    def on_evaluate(self, run: rayfed.Run, row: dict[str, Any]) -> bool | None:
        self.calls.append(row["accuracy/global"])
        return None

    def on_end(self, run: rayfed.Run) -> None:
        assert run.summary is not None
        self.calls.append(run.summary["rounds"])


def test_callbacks(tmp_path: Path, no_report: None) -> None:
    heard = Heard()
    run = rayfed.run(tiny(), out=tmp_path, local=True, callbacks=[heard, rayfed.Callback()])
    assert isinstance(run, rayfed.Run)
    scores = run.metrics(evaluated=True)
    assert scores["round"].to_pylist() == [2, 3] and None not in scores["accuracy/global"].to_pylist()
    first, second = scores["accuracy/global"].to_pylist()
    where = tmp_path.name
    assert heard.calls == [(where, 1), (where, 2), first, (where, 3), second, 3]


def test_callbacks_of_a_study(tmp_path: Path, no_report: None) -> None:
    heard = Heard()
    rayfed.run(tiny(rounds=1, seeds=[0, 1], arms={"a": {}, "b": {}}), out=tmp_path, local=True, callbacks=[heard])
    rounds = [c for c in heard.calls if isinstance(c, tuple)]
    assert rounds == [("a", 1), ("b", 1), ("a", 1), ("b", 1)] and heard.calls.count(1) == 4


def test_a_callback_stops_a_run_which_goes_on_later(tmp_path: Path, no_report: None) -> None:
    run = rayfed.run(tiny(), out=tmp_path, local=True, callbacks=[Heard(stop_at=1)])
    assert isinstance(run, rayfed.Run) and run.summary is None and run.status.startswith("stopped")
    reached, again = run.metrics().num_rows, Heard()
    assert 1 <= reached < 3
    whole = rayfed.resume(run.path, local=True, callbacks=[again])
    assert whole.summary is not None and [c[1] for c in again.calls if isinstance(c, tuple)] == list(
        range(reached + 1, 4)
    )


def test_a_callback_that_fails_is_the_callers_error(tmp_path: Path, no_report: None) -> None:
    class Wrong(rayfed.Callback):
        def on_round(self, run: rayfed.Run, row: dict[str, Any]) -> bool | None:
            raise ValueError("my own")

    with pytest.raises(Exception, match="my own"):
        rayfed.run(tiny(), out=tmp_path, local=True, callbacks=[Wrong()])


def test_in_the_background(tmp_path: Path, no_report: None) -> None:
    seen: list[int] = []
    running = rayfed.start(tiny(), out=tmp_path, local=True, watch=lambda status: seen.append(status["round"]))
    run = running.result(240)
    assert running.done() and isinstance(run, rayfed.Run) and run.summary is not None and seen[-1] == 3
    assert running.run == run and running.status["status"] == "done" and "round 3/3" in repr(running)
    with pytest.raises(ConfigError, match="rouns"):
        rayfed.start(tiny(rouns=3))


def test_a_run_in_the_background_is_stopped(tmp_path: Path, no_report: None) -> None:
    running = rayfed.start(tiny(rounds=100_000), out=tmp_path, local=True)
    running.stop()
    run = running.result(240)
    assert isinstance(run, rayfed.Run) and run.summary is None and running.done()


def test_what_ends_a_run_in_the_background_is_raised_by_its_result(tmp_path: Path, no_report: None) -> None:
    (tmp_path / "file").touch()
    running = rayfed.start(tiny(), out=tmp_path / "file", local=True)
    with pytest.raises(ConfigError, match="cannot make a run folder"):
        running.result(240)


def test_the_best_rounds_model(tmp_path: Path, no_report: None) -> None:
    run = rayfed.run(tiny(storage={"best": "loss/global"}, evaluate={"every": 1}), out=tmp_path, local=True)
    assert isinstance(run, rayfed.Run) and run.models(best=True) == ["model"]
    rows = run.metrics().to_pylist()
    best = min(rows, key=lambda r: r["loss/global"])["round"]
    assert (run.path / "best" / f"round-{best:06d}").is_dir()
    x = np.zeros((2, 8))
    assert run.model(best=True)(x).shape == (2, 4)
    assert torch.equal(run.model(best=True)(x), run.model()(x)) is (best == 3)
    with pytest.raises(ConfigError, match="best and client"):
        run.model(best=True, client=1)
    with pytest.raises(ConfigError, match=r"storage\.best"):
        made("fedavg", tmp_path / "without").model(best=True)
