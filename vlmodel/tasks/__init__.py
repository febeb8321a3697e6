"""Tasks, one file each. A task defines the rows that it makes of samples, its head, loss, metrics, answers, and how it
is served.
"""

DEFAULT = "vqa"
"""The kind of task where none is named."""
