"""Decoders, one file a task: its layers, its loss, its counts and its answers."""
