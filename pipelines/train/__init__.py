"""Training: the loop, the optimizer step, checkpoints, validation, the run's folder."""
