"""Measurements of speed and accuracy; run a module by `python -m benchmarks.NAME` from the repository's root."""
