"""What a run was made from: kept next to it, compared when it is resumed, and what mends a damaged config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rayfed.errors import ConfigError
from rayfed.storage import provenance
from rayfed.storage.provenance import Provenance, read_settings, restore, settings_file
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.text_files import yaml_bytes
from tests.unit.storage.writer import CONFIG, ME, make_run

THEN = Provenance("config.yaml", "seed: 1\nlocal: {lr: 0.1}\n", split="ab" * 16, code={"own.py": "1", "m": "2"})


def test_a_run_keeps_what_it_was_made_from(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, CONFIG, owner=ME, split="s", code={"a.py": "d"})
    known = Provenance.read(folder.path)
    assert known is not None
    assert (known.file, known.split, known.code, known.before) == ("config.yaml", "s", {"a.py": "d"}, None)
    assert known.text.encode() == (folder.path / "config.yaml").read_bytes()
    assert {"rayfed", "torch", "ray", "numpy", "transformers", "peft", "python"} == set(known.versions)
    folder.set_config({**CONFIG, "rounds": 7})
    again = Provenance.read(folder.path)
    assert again is not None and again.settings()["rounds"] == 7 and again.code == known.code
    assert restore(folder.path) == [] and read_settings(folder.path)["rounds"] == 7


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (THEN, []),
        (replace(THEN, text="seed: 2\nlocal: {lr: 0.1}\n"), ["config.yaml: seed is 2 and was 1"]),
        (replace(THEN, text="seed: 1\n"), ["config.yaml: local.lr is missing and was 0.1"]),
        (replace(THEN, split="cd" * 16), ["data: rows, labels or who holds what are not the same"]),
        (replace(THEN, split=None), []),
        (replace(THEN, code={"own.py": "1", "m": "3"}), ["code: m was changed"]),
        (replace(THEN, versions={"torch": "0"}), []),
    ],
)
def test_changes_are_named(now: Provenance, says: list[str]) -> None:
    found = provenance.changes(THEN, now)
    assert len(found) == len(says) and all(f.startswith(s) for f, s in zip(found, says, strict=True))


def test_versions_are_named() -> None:
    (found,) = provenance.version_changes(
        replace(THEN, versions={"torch": "1"}), replace(THEN, versions={"torch": "2"})
    )
    assert found == "torch 2 (was 1)"


def test_a_refusal_names_the_flag_and_not_everything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--accept-changes") as refused:
        provenance.refuse_changes(tmp_path, [f"change {i}" for i in range(20)])
    assert "change 7" in str(refused.value) and "change 8" not in str(refused.value) and "12 more" in str(refused.value)
    provenance.refuse_changes(tmp_path, [])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: f.unlink(), "it is missing; written again"),
        (lambda f: f.write_bytes(b""), "it is cut to 0 bytes; set aside as .damaged-config.yaml"),
        (lambda f: f.write_bytes(f.read_bytes()[:30]), "it is cut to 30 bytes"),
        (lambda f: f.write_bytes(b"\x00\xff\xfe" * 9), "it cannot be read"),
        (lambda f: f.write_bytes(b"- a\n- list\n"), "it cannot be read"),
        (lambda f: (f.unlink(), f.mkdir()), "it cannot be read"),
    ],
)
def test_a_damaged_config_is_written_again(tmp_path: Path, harm, says: str) -> None:
    path = make_run(tmp_path).path
    before = (path / "config.yaml").read_bytes()
    harm(path / "config.yaml")
    assert read_settings(path) == CONFIG and settings_file(path) == "config.yaml"
    (note,) = restore(path)
    assert note.startswith("config.yaml: ") and says in note
    assert (path / "config.yaml").read_bytes() == before
    assert restore(path) == []


def test_an_edit_stays(tmp_path: Path) -> None:
    path = make_run(tmp_path).path
    (path / "config.yaml").write_bytes(yaml_bytes({**CONFIG, "seed": 4}))
    assert restore(path) == [] and b"seed: 4" in (path / "config.yaml").read_bytes()
    assert read_settings(path)["seed"] == CONFIG["seed"], "the rows are of the recorded one"
    assert provenance.edits(path) == ["config.yaml: seed is 4 and was 3"]
    (path / "provenance.json").unlink()
    assert provenance.edits(path) == []


def test_a_crash_between_the_two_files_of_a_change_is_no_edit(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    old = (folder.path / "config.yaml").read_bytes()
    folder.set_config({**CONFIG, "rounds": 7})
    (folder.path / "config.yaml").write_bytes(old)
    assert restore(folder.path) == []
    assert b"rounds: 7" in (folder.path / "config.yaml").read_bytes()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"file": 3}', b"{}", b'{"file": "../x", "text": ""}', b"\xff" * 50])
def test_a_damaged_record_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = make_run(tmp_path).path
    (path / "provenance.json").write_bytes(content)
    assert read_settings(path) == CONFIG
    (note,) = restore(path)
    assert note.startswith("provenance.json: ") and note.endswith("set aside as .damaged-provenance.json")
    assert Provenance.read(path) is None and restore(path) == []


def test_nothing_left_is_a_sentence(tmp_path: Path) -> None:
    path = make_run(tmp_path).path
    (path / "provenance.json").unlink()
    (path / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read, and provenance\.json holds no copy"):
        read_settings(path)
    (path / "config.yaml").unlink()
    assert settings_file(path) is None
