"""What users bring: labels, splits, the slides of a data set."""
