"""Benchmarks whose results are dated and name hardware and command."""
