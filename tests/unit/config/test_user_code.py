"""Classes and functions of a Python session as names in a config."""

from __future__ import annotations

import importlib.util
import itertools
import linecache
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rayfed
from actors.messages import RunSetup
from rayfed import methods
from rayfed.config import user_code
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from tests import toy
from tests.conftest import ROOT

METHOD = """
from rayfed import PARAMS, Method, Part, Wire, mean, sgd_visit, tree, visit
STEP = 1.0
def move(state, delta):
    return tree.add(state, delta, STEP)
class Mine(Method):
    wire = Wire(
        down={"model": Part(PARAMS)}, up={"delta": Part(PARAMS, update=True)}, server={"model": Part(PARAMS)}
    )
    @visit
    def train(self, task):
        return sgd_visit(task.loss, self.local)
    def round(self, state, fed, task):
        got = fed.ask(self.train, fed.sample(), shared=state, fold=mean("delta", weight="examples"))
        return {"model": move(state["model"], got.folded["delta"])}
"""


numbers = itertools.count()


Cell = Callable[[str], dict[str, Any]]


@pytest.fixture
def cell() -> Cell:
    """Runs text as a notebook's cell; all cells of a test share their names."""
    names: dict[str, Any] = {"__name__": "__main__"}

    def run(text: str) -> dict[str, Any]:
        file = f"<cell-{next(numbers)}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec", dont_inherit=True), names)
        return names

    return run


def text_of(thing: Any) -> str:
    found = user_code.content(user_code.name_of(thing, "x").rpartition(":")[0])
    assert found is not None
    return found.decode()


def again(thing: Any) -> Any:
    """The class or function from what was written down, in a module that knows nothing of the session."""
    path, _, name = user_code.name_of(thing, "x").rpartition(":")
    return getattr(user_code.load_file(path), name)


def refused(thing: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        user_code.name_of(thing, "method.name")
    return caught.value.problems


def test_a_function_with_all_that_it_uses(cell: Cell) -> None:
    names = cell("""
import math as m
import os.path
import xml.dom.minidom
from collections import OrderedDict as Ordered
from functools import lru_cache
from math import pi
from typing import Literal
RATES = {"a": (1, 2.5), "b": [None, True]}
OFF = 4
kind = Literal["x"]
class Base:
    def twice(self, x): return 2 * x
class Child(Base):
    shift = OFF
@lru_cache
def half(x): return x / 2
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
def unused(): return nowhere
""")
    names = cell("""
def f(x: "Child", k: Literal["a", "b"] = "a", off=OFF):
    inner = [RATES[k][i] * m.sqrt(x) for i in range(2)]
    return sum(inner), Child().twice(half(off)), pi, Ordered(), os.path.sep, even(4), xml.dom.minidom.Node.TEXT_NODE
""")
    assert again(names["f"])(4) == names["f"](4) == (7.0, 4.0, 3.141592653589793, {}, "/", True, 3)
    assert again(names["f"]) is not names["f"]
    text = text_of(names["f"])
    assert "unused" not in text and "kind" not in text
    assert text == text_of(names["f"])  # the same text has the same name


def test_a_name_of_another_name(cell: Cell) -> None:
    names = cell("def old(x):\n    return x + 1\nnew = old\ndef f(x):\n    return new(x) * old(x)")
    assert again(names["f"])(1) == 4


def test_the_newest_definition_counts_and_a_class_needs_no_function(cell: Cell) -> None:
    cell("class S:\n    size = 1\ndef f():\n    return S.size")
    names = cell("class S:\n    size = 2\n")
    assert again(names["S"]).size == 2 and again(names["f"])() == 2
    cell("\n\ndef f():\n    return 3")
    assert again(names["f"])() == 3


def test_annotations_of_the_future(cell: Cell) -> None:
    names = cell("""
from __future__ import annotations
import pydantic
from typing import Literal
class S(pydantic.BaseModel):
    kind: Literal["a", "b"] = "a"
    def later(self) -> Undefined: ...
""")
    assert again(names["S"])(kind="b").kind == "b"


def test_a_class_of_a_file_goes_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_by_file.py").write_text(METHOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine_by_file  # type: ignore[import-not-found]

    assert user_code.name_of(mine_by_file.Mine, "x") == f"{tmp_path / 'mine_by_file.py'}:Mine"
    from rayfed.methods.fedavg import FedAvg

    assert user_code.name_of(FedAvg, "x") == "fedavg"


def test_what_cannot_be_written_is_named(cell: Cell) -> None:
    names = cell("""
import numpy as np
table = np.zeros(3)
opened = open("/dev/null")
def g(): return opened
def f(): return table, g()
""")
    problems = refused(names["f"])
    assert len(problems) == 2 and all(t.startswith("method.name: f uses ") for t in problems)
    assert "table (ndarray) of the session" in "\n".join(problems) and "opened (TextIOWrapper)" in "\n".join(problems)


def test_no_name_and_no_source(cell: Cell) -> None:
    def local() -> None: ...

    assert "is defined inside a function" in refused(local)[0]
    assert "a lambda" in refused(lambda: 0)[0]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("def typed(): pass\nclass Typed: pass", names)  # no cell, no file
    assert "the source of typed cannot be had" in refused(names["typed"])[0]
    assert "path/to/file.py:Typed" in refused(names["Typed"])[0]


def test_a_config_lists_all_of_them(cell: Cell) -> None:
    names = cell("table = object()\ndef data(seed): return table\nclass M:\n    def f(self): return table")
    raw = {**toy.TOY, "task": {"data": names["data"], "model": lambda c, s: None}, "method": {"name": names["M"]}}
    with pytest.raises(ConfigError) as caught:
        load_request(raw)
    assert [p.split(":")[0] for p in caught.value.problems] == ["task.data", "task.model", "method.name"]


def test_a_class_that_is_no_method(cell: Cell) -> None:
    with pytest.raises(ConfigError, match=r"method\.name: code/Other-\w+\.py has no Method named 'Other'"):
        load_request({**toy.TOY, "method": cell("class Other:\n    pass")["Other"]})


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfed.report.write_report", lambda path: None)


@pytest.mark.usefixtures("no_report")
def test_a_run_of_a_cells_class_is_a_run_of_its_file_and_resumes_elsewhere(cell: Cell, tmp_path: Path) -> None:
    mine = cell(METHOD)["Mine"]
    (tmp_path / "mine.py").write_text(METHOD)
    runs = [
        rayfed.run(toy.TOY, sets={"method": {"name": name}}, local=True, out=tmp_path / "runs")
        for name in (mine, str(tmp_path / "mine.py") + ":Mine")
    ]
    assert all(isinstance(r, rayfed.Run) for r in runs)
    ours, theirs = (r.metrics().column("loss/global").to_pylist() for r in runs)
    assert ours == theirs
    (file,) = (runs[0].path / "code").iterdir()
    assert not (runs[1].path / "code").exists()  # that code is in the user's own file
    moved = runs[0].path.rename(tmp_path / "moved")
    done = subprocess.run(
        [sys.executable, "-c", "import sys, rayfed; rayfed.resume(sys.argv[1], sets=['rounds=3'], local=True)", moved],
        cwd="/", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rayfed.load(moved).metrics()["round"].to_pylist() == [1, 2, 3]
    file = moved / "code" / file.name
    file.write_text(file.read_text().replace("STEP = 1.0", "STEP = 9.0"))
    with pytest.raises(ConfigError, match="was changed after the run was made"):
        rayfed.resume(moved, local=True)


@pytest.mark.usefixtures("no_report")
def test_arms_of_a_study_take_classes(cell: Cell, tmp_path: Path) -> None:
    mine = cell(METHOD)["Mine"]
    raw = {
        **toy.TOY,
        "seed": 0,
        "method": "fedavg",
        "rounds": 1,
        "seeds": [0],
        "arms": {"plain": {}, "mine": {"method": mine}},
    }
    study = rayfed.run(raw, local=True, out=tmp_path)
    assert isinstance(study, rayfed.Study)
    assert len(list((study.path / "code").iterdir())) == 1
    losses = {arm: runs[0].metrics()["loss/global"].to_pylist() for arm, runs in study.arms.items()}
    assert losses["mine"] == losses["plain"]  # with a step of 1 it is FedAvg
    assert study.results().num_rows == 2 and study.summary["status"] == "done"


def test_a_script_is_a_session_too(tmp_path: Path) -> None:
    small = {**toy.TOY, "rounds": 1, "method": "fedavg"}
    (tmp_path / "script.py").write_text(
        f"{METHOD}\nimport rayfed\nrayfed.run({small!r}, sets={{'method': Mine}}, local=True)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()  # the script ran once: it was not run again to find the class
    assert rayfed.load(folder).summary["status"] == "done"


ACTOR = """
import pickle, sys
from actors.client import ClientActor
actor = ClientActor(0, 1, 0)
actor.setup(*pickle.load(sys.stdin.buffer))
print(type(actor.worker.runs["run"].method).__name__, "ray" in sys.modules)
"""


@pytest.mark.parametrize("given", ["cell", "file"])
def test_a_client_actor_needs_no_file(given: str, cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    made = toy.config(user_code.name_of(cell(METHOD)["Mine"], "x") if given == "cell" else "mine.py:Mine")
    values = made.to_dict()
    setup = RunSetup("run", values, user_code.used(values))
    packed = pickle.dumps((setup, toy.federation(made).numpy(), None))
    done = subprocess.run([sys.executable, "-c", ACTOR], cwd=ROOT, input=packed, capture_output=True)
    assert done.stdout.decode() == "Mine False\n", done.stderr.decode()


def test_a_file_is_read_again_after_a_change(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(METHOD)
    first = methods.get(f"{file}:Mine")
    assert methods.get(f"{file}:Mine") is first
    file.write_text(METHOD + "\nclass More(Mine): pass\n")
    assert methods.get(f"{file}:More") is not None and methods.get(f"{file}:Mine") is not first
    assert importlib.util.find_spec(first.__module__) is not None


def test_an_error_inside_a_file_is_not_called_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("open('nowhere.txt')")
    with pytest.raises(ConfigError, match=r"cannot be imported: FileNotFoundError: .*nowhere\.txt"):
        methods.get(f"{tmp_path / 'm.py'}:Mine")
