"""Benchmarks: declared experiments, one runner, one JSON file per cell."""
