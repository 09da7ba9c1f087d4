"""What `rayfed doctor` looks at: each finding on a machine that is made so."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from rayfed.launch import doctor


def test_requirements_are_compared_with_what_is_installed() -> None:
    needed = [
        "numpy>=1.0",
        "numpy>=9999",
        "no-such-library>=1",
        'no-such-sink>=1; extra == "wandb"',
        'nothing; extra == "test"',
    ]
    right, wrong, lacking = doctor.compare_requirements(needed, ["wandb", "mlflow"])
    assert len(right) == 1 and right[0].startswith("numpy ") and lacking == ["wandb"]
    assert (
        len(wrong) == 2
        and wrong[0].endswith("found, needed: >=9999")
        and wrong[1].startswith("no-such-library is missing")
    )


def test_a_port_on_which_somebody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (found,) = doctor.check_ports({port: "a test"})
        assert found.found == f"{port}, a test: somebody listens there"
    (found,) = doctor.check_ports({port: "a test"})
    assert found.found.endswith("free") and found.status == "ok"


def test_a_disk_that_is_full_or_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, _, _ = doctor.check_disks(tmp_path / "a" / "runs")
    assert "a/runs" in runs.found and "GB free" in runs.found
    monkeypatch.setattr(doctor, "LEAST_DISK", 1e18)
    assert [c.status for c in doctor.check_disks(tmp_path)] == ["wrong"] * 3
    monkeypatch.setattr(doctor, "LEAST_DISK", 0.0)
    (tmp_path / "file").touch()
    assert next(iter(doctor.check_disks(tmp_path / "file" / "runs"))).found.endswith("cannot be written to")


def test_secrets_are_shown_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush")
    monkeypatch.setenv("RAYFED_CACHE", "/somewhere")
    found = "\n".join(c.found for c in doctor.check_variables())
    assert "RAY_AUTH_TOKEN: is set" in found and "RAYFED_CACHE: /somewhere" in found and "hush" not in found


@pytest.mark.parametrize("names", [[], ["NVIDIA H200"]])
def test_gpus_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver_gpus", lambda: names)
    (found,) = doctor.check_gpus()
    assert found.status == ("note" if names else "ok") and all(n in found.found for n in names)


def test_the_whole_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYFED_CACHE", str(tmp_path))
    found: list[Any] = doctor.check_machine(tmp_path)
    assert {c.what for c in found} >= {
        "python",
        "rayfed",
        "libraries",
        "processors",
        "GPUs",
        "compiler",
        "ports",
        "disk",
        "limits",
    }
    assert {c.status for c in found} <= {"ok", "note", "wrong"}
