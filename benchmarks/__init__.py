"""Measurements, each a command: `python -m benchmarks.scoring --help`."""
