"""Fusions: HOW streams become one. Each takes any number of named streams, in the order of their names."""
