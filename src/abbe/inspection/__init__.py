"""Identify files and report their problems, for `abbe inspect`."""
