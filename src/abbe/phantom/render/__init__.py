"""Painting tissue: noise, stain, twelve classes, whole slides."""
