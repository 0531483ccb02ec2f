"""Evaluate a model on a cohort: metrics with confidence intervals."""
