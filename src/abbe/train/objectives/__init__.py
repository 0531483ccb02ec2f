"""What is learned: one file for each kind of model."""
