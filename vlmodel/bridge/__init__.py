"""Bridges turn the stream of an encoder into tokens of a language model. Each kind has a public file with its settings
and a private file with its module.
"""
