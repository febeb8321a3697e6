"""Many trainings of one kind: grids (ablation) and searches (Ray Tune), their tables and pictures."""
