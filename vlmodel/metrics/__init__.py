"""Metrics as pure functions, one file for each task: they take lists or tensors and return a flat dict of floats.

Names that start with ``floor_`` are those of a baseline that does not look at the image.
"""
