"""Image decoders, one file a kind (``stream.decoding``): "cpu", the default, decodes every format; "gpu" plain JPEGs.

"gpu" returns which files it has decoded; "cpu" decodes the others.
"""
