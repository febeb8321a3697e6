"""Sources of facts, one file for each format; ``knowledge.source.kind`` names the file of a ``Config``."""
