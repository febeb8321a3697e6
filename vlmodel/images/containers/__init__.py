"""Containers of image files, one file a family: headers, metadata and where the image ends, without decoding.

Segments, chunks and boxes are walked by their lengths. Markers are never searched for, because a thumbnail, a profile
or a text may contain them too. Broken metadata is no error: it gives the orientation or is skipped.
"""
