"""Decoders, one file a task: its head, its loss, its counts and its answer."""
