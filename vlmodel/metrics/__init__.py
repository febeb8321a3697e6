"""Metrics, one file a task, as pure functions: lists or tensors in, a flat dict of floats out.

Names that start with ``floor_`` are those of a baseline that does not look at the image.
"""
