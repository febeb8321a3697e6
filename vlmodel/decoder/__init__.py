"""Decoders, the heads of the tasks: their layers, losses, counts of right predictions, and answers."""
