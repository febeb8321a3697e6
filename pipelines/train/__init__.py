"""Training: the loop, one step, checkpoints, evaluation within it, tracking."""
