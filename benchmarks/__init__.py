"""Measurements, each a command: `python -m benchmarks.scoring --help`."""

import sys
from pathlib import Path

# Benchmarks import the examples' model, adapter and held-out loss, so that both measure the same.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
