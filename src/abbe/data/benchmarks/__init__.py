"""Public data sets: one file a set, read as published."""
