"""`write_report` and `write_comparison`: what they write, and what they refuse."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from rayfed.errors import ConfigError
from rayfed.report import write_comparison, write_report
from rayfed.report.html import number
from tests.unit.report.folders import Page


def test_report_needs_a_run_or_a_study(tmp_path):
    with pytest.raises(ConfigError, match="neither a run"):
        write_report(tmp_path)


def test_the_page_that_compares(tmp_path, several, monkeypatch):
    from scipy import stats

    monkeypatch.chdir(tmp_path)
    page = write_comparison(several[:3])
    assert page.name == f"compare-{'-'.join(p.name[-4:] for p in several[:3])}.html" and page.is_file()
    assert sorted(p.name for p in several[0].iterdir() if p.name in ("plots", "report.html")) == []
    page = write_comparison(several, "mine.html")
    text = page.read_text()
    read = Page(text)
    assert (
        len(read.ids) == len(set(read.ids)) and "script" not in read.tags and read.tags.count("figure") == 5
    )  # accuracy, loss, partition, worth, cost
    said = " ".join(read.text.split())
    low, high = stats.ttest_1samp([0.25, 0.35], 0.0).confidence_interval(0.95)
    assert "Difference from fedavg" in said
    assert f"+0.3000 {number(low, sign=True)} to {number(high, sign=True)}" in said
    assert f"−0.3000 {number(-high, sign=True)} to {number(-low, sign=True)}" in said  # loss: raw, less is better
    assert "0.55000.0707" not in said and "0.5500 ± 0.0707" in said and "0.8500 ± 0.1414" in said
    for path in several:
        assert f"rayfed run {path.name}/config.yaml --set resources.cohort=7" in said
    assert f"rayfed report {' '.join(p.name for p in several)}" in said
    assert "method.name" in said and re.search(
        r"9\.0 MB.*4\.0 MB.*0\.50 ×", said
    )  # up: 3 x 3 and 2 x 2 MB; 6 of 12 in all


def test_a_comparison_that_cannot_be_written(tmp_path, several):
    with pytest.raises(ConfigError, match="neither a run"):
        write_comparison([several[0], tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="is a folder"):
        write_comparison(several, tmp_path)
    with pytest.raises(ConfigError, match="cannot write"):
        write_comparison(several, tmp_path / "no" / "such.html")


def test_nothing_here_imports_torch_or_ray(tmp_path):
    code = f"""
import sys
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.tree_files import load_tree, save_tree
from rayfed.track import Sinks
from rayfed.report import write_comparison, write_report
from rayfed.storage.listing import list_runs
import numpy as np
fill = lambda d: save_tree(d, "s", {{"x": np.ones(2)}})
folder = RunFolder.create({str(tmp_path)!r}, {{"name": "x", "method": "y"}}, owner=Owner.me())
folder.commit(1, {{"loss/global": 1.0}}, [{{"client": 0, "accuracy": 0.5}}], fill)
load_tree(folder.rewind()[1], "s")
folder.finish("done", {{}})
sinks = Sinks(["tensorboard"], print)
sinks.open("run", {{}}, folder.path)
sinks.row(1, {{"a": 1.0}})
assert not sinks.notes
write_report(folder.path)
write_comparison([folder.path, folder.path], {str(tmp_path / "c.html")!r})
list_runs({str(tmp_path)!r})
print([m for m in ("torch", "ray", "tensorflow") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_command(tmp_path, several, undrawn, monkeypatch):
    from typer.testing import CliRunner

    from rayfed.cli import app

    monkeypatch.chdir(tmp_path)
    names = [p.name for p in several]
    one = CliRunner().invoke(app, ["report", names[0]])
    assert (one.exit_code, one.output) == (0, f"{names[0]}/report.html\n")
    two = CliRunner().invoke(app, ["report", names[0], names[2], "--out", "two.html"])
    assert (two.exit_code, two.output) == (0, "two.html\n")
    assert "Difference from fedavg" in Page((tmp_path / "two.html").read_text()).text
    wrong = CliRunner().invoke(app, ["report", names[0], "--out", "two.html"])
    assert isinstance(wrong.exception, ConfigError) and "--out two.html" in str(wrong.exception)
