"""Ratios to a floor and to rivals, measured in one run: `python -m benchmarks`."""
