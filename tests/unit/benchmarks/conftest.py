"""benchmarks/ is a folder of scripts, not a package: its modules are imported by their bare names."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path += [str(BENCHMARKS / "peers"), str(BENCHMARKS)]  # last, so that they hide nothing
