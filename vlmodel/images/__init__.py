"""From an image file to a square of upright RGB pixels.

``decoders/`` has one file a way of decoding, ``containers/`` the headers of the formats.
"""
