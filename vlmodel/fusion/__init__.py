"""Fusions: HOW streams of one width become one. Each takes any number of named streams, in the order of their names."""
