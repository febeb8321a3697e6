"""Decodes image files to squares of upright RGB pixels.

``decoders/`` has one file a way of decoding, ``containers/`` the headers of the formats.
"""
