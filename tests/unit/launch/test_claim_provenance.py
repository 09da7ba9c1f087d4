"""What a verdict was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rayfed.config.load import load_config
from rayfed.config.schema import Study
from rayfed.launch import claim_provenance

CONFIG = {"task": {"data": "digits", "model": "linear"}, "method": "fedavg", "seeds": [1], "arms": {"a": {}}}


def study(**changes: object) -> Study:
    made = load_config({**CONFIG, **changes})
    assert isinstance(made, Study)
    return made


def test_code_counts_and_comments_do_not(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    name = {"task": {"data": "digits", "model": f"{own}:net"}}
    own.write_text("def net(shape, classes):\n    return 1\n")
    first = claim_provenance.code_digest(study(**name))
    own.write_text('def net(shape, classes):\n    """Return one."""  # as before\n    return (1)\n')
    assert claim_provenance.code_digest(study(**name)) == first
    own.write_text("def net(shape, classes):\n    return 2\n")
    assert claim_provenance.code_digest(study(**name)) != first
    assert claim_provenance.code_digest(study()) != claim_provenance.code_digest(study(method="scaffold"))


def test_what_a_run_computes_with_counts_and_nothing_else() -> None:
    found = claim_provenance.counted(study(method={"name": "disue", "clusters": 3}))
    wanted = {
        "methods.disue",
        "distill.datafree",
        "training",
        "fold",
        "fed",
        "data.digits",
        "models.linear",
        "cluster.kmeans",
    }
    assert wanted <= set(found) and not {"methods.ifca", "models.cnn", "data.parquet", "partition.shards"} & set(found)
    shown = ("api", "cli", "config", "engine", "execute", "launch", "monitor", "report", "storage", "track")
    assert not any(name.startswith(shown) for name in found)
    assert "cluster" not in claim_provenance.counted(study()) and len(set(found.values())) == len(found)
    assert "adapters.lora" in claim_provenance.counted(study(adapter={"kind": "lora"}))


def test_a_changed_file_of_these_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    first, meaning = claim_provenance.code_digest(study()), claim_provenance._meaning
    (fold,) = (f for n, f in claim_provenance.counted(study()).items() if n == "fold")
    text = fold.read_text(encoding="utf-8")
    monkeypatch.setattr(claim_provenance, "_meaning", lambda s: meaning(s + "\nNEW = 1\n" if s == text else s))
    assert claim_provenance.code_digest(study()) != first


def test_a_checkout_and_its_changes(tmp_path: Path) -> None:
    assert claim_provenance.commit(tmp_path) is None

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "one")
    clean = claim_provenance.commit(tmp_path)
    assert clean is not None and len(clean) == 12
    (tmp_path / "file").write_text("2")
    assert claim_provenance.commit(tmp_path) == clean + "+changes"
    (tmp_path / "PAGE.md").write_text("1")
    git("add", "PAGE.md")
    git("commit", "-qam", "two")
    (tmp_path / "PAGE.md").write_text("2")  # what a sitting writes is no change of what it ran
    now = claim_provenance.commit(tmp_path)
    assert now is not None and now != clean and len(now) == 12


def test_what_changed_since_a_verdict() -> None:
    entry = {"digest": "a", "code": "b"}
    assert claim_provenance.changed(entry, "a", "b") == [] and claim_provenance.changed(entry, "x", "y") == [
        "settings",
        "code",
    ]
    assert claim_provenance.changed({"digest": "a"}, "a", "b") == ["code"]  # judged before code was counted


def test_verdicts_reproduced_under_other_code_are_not_stale() -> None:
    entry = {"digest": "a", "code": "b", "reproductions": [{"code": "c", "results": [{"same": True}, {"same": True}]}]}
    assert claim_provenance.changed(entry, "a", "c") == [] and claim_provenance.changed(entry, "a", "d") == ["code"]
    entry["reproductions"][0]["results"][1]["same"] = False
    assert claim_provenance.changed(entry, "a", "c") == ["code"]
