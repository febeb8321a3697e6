"""Decoders are the task-specific heads of a model: they compute scores, losses, numbers of right predictions, and
answers.
"""
