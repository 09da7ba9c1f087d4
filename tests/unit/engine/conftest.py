"""What the tests of the engine share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny import on_bert  # noqa: F401


@pytest.fixture
def odd(tmp_path: Path) -> str:
    """The name of odd_method.py's method, in a file of this test's own: its lists of what was seen begin empty."""
    shutil.copy(Path(__file__).with_name("odd_method.py"), tmp_path / "odd.py")
    return f"{tmp_path / 'odd.py'}:Odd"
