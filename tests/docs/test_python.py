"""The page's blocks, run in order in one session, as a notebook runs its cells."""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import Any

import pytest

import rayfed
from tests.conftest import ROOT
from tests.tiny_lm import make_data, make_lm

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)


def run_cells(cells: list[str], where: str) -> dict[str, Any]:
    """The names that the cells leave. Python knows each cell's text under a unique file name, as under IPython."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for i, text in enumerate(cells):
        file = f"<{where}-{i}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec", dont_inherit=True), names)
    return names


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        patch.setenv("RAYFED_CACHE", str(tmp_path_factory.mktemp("cache")))
        make_lm(Path("models/tiny-lm"), "gpt2")
        make_data(Path("instructions"))
        patch.setattr("rayfed.report.write_report", lambda path: None)  # pictures take longer than all runs together
        yield run_cells(BLOCKS, "python.md")


def test_every_block_ran(session: dict[str, Any]) -> None:
    assert len(BLOCKS) == 9 and len(list(Path("runs").iterdir())) == 6 and Path("behind.pdf").is_file()


def test_tables(session: dict[str, Any]) -> None:
    assert session["rounds"]["round"].tolist() == [1, 2, 3, 4]
    assert sorted(session["clients"]["client"]) == list(range(12))
    assert session["rounds"]["accuracy/global"].iloc[-1] > 0.3  # ten classes


def test_the_study(session: dict[str, Any]) -> None:
    study = session["study"]
    assert isinstance(study, rayfed.Study)
    assert {arm: list(runs) for arm, runs in study.arms.items()} == {"fedavg": [0, 1], "alone": [0, 1]}
    assert len(session["table"]) == 2 * 2 * 4
    finals = [r.summary["metrics"]["accuracy/personal"]["final"] for r in study.arms["fedavg"].values()]
    assert study.summary["arms"]["fedavg"]["accuracy/personal"]["mean"] == pytest.approx(sum(finals) / 2)


def test_the_tuned_model_is_the_base_with_its_adapter(session: dict[str, Any]) -> None:
    prompt, said = session["ids"][0].tolist(), session["said"][0].tolist()
    assert said[: len(prompt)] == prompt and 1 <= len(said) - len(prompt) <= 8
    moved = [p for n, p in session["tuned"].named_parameters() if "lora_B" in n]
    assert moved and all(bool(p.any()) for p in moved)


def test_the_method_of_a_cell(session: dict[str, Any]) -> None:
    run = session["run"]
    name = run.config["method"]["name"]
    assert re.fullmatch(r"code/Damped-[0-9a-f]{12}\.py:Damped", name) and run.config["method"]["eta"] == 0.8
    assert [f.name for f in (run.path / "code").iterdir()] == [name.removeprefix("code/").removesuffix(":Damped")]
    assert run.summary["status"] == "done"
