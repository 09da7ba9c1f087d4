"""The notebooks of docs/, executed: their cells in one session, and where nbclient is there as Jupyter executes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.docs.test_python import run_cells

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(file: Path) -> list[str]:
    return [
        "".join(c["source"]) for c in json.loads(file.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYFED_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_there_are_two() -> None:
    assert [f.stem for f in NOTEBOOKS] == ["own-model-and-data", "quickstart"]
    for file in NOTEBOOKS:  # as they are kept: without what a session left in them
        kept = json.loads(file.read_text(encoding="utf-8"))["cells"]
        assert all(not c.get("outputs") and c.get("execution_count") is None for c in kept)


@pytest.mark.slow
def test_the_quickstart(folder: Path) -> None:
    made: dict[str, Any] = run_cells(cells(NOTEBOOKS[1]), "quickstart")
    assert (
        list(made["study"].arms) == ["fedavg", "ifca", "disue", "disue_living"]
        and made["study"].summary["status"] == "done"
    )
    assert made["rounds"]["round"].tolist() == [3, 6] and set(made["clients"]["group"]) == {0, 1, 2}
    assert 4 <= made["stopped"].metrics().num_rows < 50 and made["page"].is_file()  # a round may be under way
    assert "mean rank" in made["latex"] and "Caution: 2 seeds only" in str(made["table"])


@pytest.mark.slow
def test_own_model_and_data(folder: Path) -> None:
    made: dict[str, Any] = run_cells(cells(NOTEBOOKS[0]), "own")
    assert "task.normalise" in made["run"].summary["notes"][0] and made["study"].summary["status"] == "done"
    assert made["run"].metrics(evaluated=True)["accuracy/global"].to_pylist()[-1] > 0.6  # three classes
    assert (folder / "rolling.pt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_as_jupyter_executes_it(file: Path, folder: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install 'rayfed-engine[notebooks]'")
    nbclient = pytest.importorskip("nbclient", reason="pip install 'rayfed-engine[notebooks]'")
    pytest.importorskip("ipykernel", reason="pip install 'rayfed-engine[notebooks]'")
    notebook = nbformat.read(file, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    assert all(c.get("execution_count") for c in notebook.cells if c.cell_type == "code")
