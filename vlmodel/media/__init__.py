"""Media: the kinds of data that the bytes of a sample's input can be, one file for each medium, which has the medium's
name.
"""
