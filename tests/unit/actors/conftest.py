"""What tests of jobs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_head import OWN_METHOD


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file with a method of the user's own."""
    (tmp_path / "my method.py").write_text(OWN_METHOD)
    return tmp_path / "my method.py"
