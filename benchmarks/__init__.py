"""Benchmarks: `python -m benchmarks [NAME ...] [--quick] [--device cuda] [--json FILE]`."""
