"""Bridges: they turn an encoder's stream into tokens of a language model. One file of settings each; its module is in a
private file beside it.
"""
