"""Image decoders, one file for each kind (``stream.decoding``): "cpu", the default, decodes every format; "gpu" decodes
plain JPEGs only.

"gpu" returns which files it has decoded; "cpu" decodes the others.
"""
