"""Encoders of additional inputs of a sample (``model.inputs.NAME``). Each kind has a public file with its settings and
a private file with its module.
"""
