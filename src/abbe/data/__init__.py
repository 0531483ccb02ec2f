"""Labels, splits and slides of a data set."""

SPLITS = ("train", "val", "test")
