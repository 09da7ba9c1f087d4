"""Versions are found without importing anything."""

from __future__ import annotations

import subprocess
import sys


def test_versions_import_nothing() -> None:
    code = """
import sys
from rayfed.storage.versions import versions
print(sorted(versions()), [m for m in ("torch", "ray", "numpy") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['numpy', 'peft', 'python', 'ray', 'rayfed', 'torch', 'transformers'] []"
