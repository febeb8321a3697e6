"""One file per layout that can be imported; ``source.kind`` is the file's name."""
