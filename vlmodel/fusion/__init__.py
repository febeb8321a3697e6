"""Fusions merge several named streams into one. Each takes any number of streams, in the order of their names."""
