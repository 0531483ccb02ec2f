"""Slides whose truth is known: layouts, banks of patches, cohorts."""
