"""Protocols that turn a model and a cohort into figures with intervals."""
