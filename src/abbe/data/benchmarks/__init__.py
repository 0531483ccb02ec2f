"""Readers for public data sets, one module per data set."""
