"""Benchmarks: ratios measured in one run, dated, with hardware and command."""
