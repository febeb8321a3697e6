"""Image decoders, one file a kind (``stream.decoder``): "cpu", the default, decodes every format; "gpu" plain JPEGs.

"gpu" returns which files it has decoded; "cpu" decodes the others.
"""
