"""Figures of the field, one file a task, as pure functions: lists or tensors in, a flat dict of floats out.

Names that start with ``floor_`` say what is reached without looking.
"""
