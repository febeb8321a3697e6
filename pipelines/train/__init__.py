"""Training: the loop, one step, checkpoints, validation, the run's folder."""
