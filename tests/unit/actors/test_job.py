"""Status words, exit codes and metadata of a job."""

from __future__ import annotations

import pytest

from actors.jobs.job import JobMetadata
from tests.fake_head import job


@pytest.mark.parametrize(
    ("status", "code", "want", "said"),
    [
        ("SUCCEEDED", 0, 0, "done"),
        ("FAILED", 3, 3, "failed (exit 3)"),
        ("FAILED", 130, 130, "interrupted"),
        ("FAILED", None, 4, "failed (exit 4)"),
        ("FAILED", -9, 4, "failed (exit 4)"),
        ("STOPPED", None, 143, "stopped"),
        ("RUNNING", None, None, "running"),
    ],
)
def test_exit_codes_and_words(status: str, code: int | None, want: int | None, said: str) -> None:
    assert job("j", status, code).standing == said
    if want is not None:
        assert job("j", status, code).exit_code == want


def test_metadata_survive_ray_which_keeps_texts_only() -> None:
    whole = JobMetadata("r", "runs", "run", "fedavg", 12, 6, 9, 1, {"data/0-x": "/x"})
    assert all(isinstance(v, str) for v in whole.to_ray().values())
    assert JobMetadata.from_ray(whole.to_ray()) == whole
    few = JobMetadata("r", "runs", "resume")
    assert (
        few.to_ray() == {"run": "r", "out": "runs", "command": "resume"} and JobMetadata.from_ray(few.to_ray()) == few
    )
