"""Importers, one file for each layout of data sets; ``source.kind`` is the file's name."""
