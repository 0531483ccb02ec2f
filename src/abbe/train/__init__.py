"""One training loop, its objectives, its checkpoints."""
