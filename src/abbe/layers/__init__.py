"""`nn.Module`s and helpers that several rooms share."""
