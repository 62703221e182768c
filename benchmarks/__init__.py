"""Benchmarks of quality, adaptation, serving and robustness, each run by `python -m benchmarks.NAME`."""
