"""What users bring: labels, splits, the slides of a data set."""

SPLITS = ("train", "val", "test")
