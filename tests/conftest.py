"""What all tests share: `tests.toy` can be imported from wherever pytest was started."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# pytest puts this folder itself on the path, where `import ray` could find tests/ray; the repository's root belongs there.
sys.path[:] = [str(ROOT)] + [p for p in sys.path if Path(p or ".").resolve() not in (ROOT, ROOT / "tests")]
