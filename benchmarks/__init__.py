"""Measurements, each a command: `python -m benchmarks.scoring --help`."""

import sys
from pathlib import Path

# The examples' model, pool and measures serve here too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
