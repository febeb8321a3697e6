"""Fusions: modules that make one stream of several. Each takes any number of named streams, in the order of names."""
