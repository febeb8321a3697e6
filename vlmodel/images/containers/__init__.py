"""Parses the containers of image files: headers, metadata, and where the image ends; nothing is decoded. One file for
each family of formats.

Segments, chunks and boxes are walked by their lengths. Markers are never searched for, because a thumbnail, a profile
or a text may contain them too. Broken metadata is no error: it gives the orientation or is skipped.
"""
