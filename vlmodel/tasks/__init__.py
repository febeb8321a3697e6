"""Tasks, one file each: what rows a task makes of samples, its head, loss, metrics, answers and how it is served."""

DEFAULT = "vqa"
"""The kind of task where none is named."""
