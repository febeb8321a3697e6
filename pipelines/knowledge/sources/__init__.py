"""Sources of facts: a file a format, whose ``Config`` is named by ``knowledge.source.kind``."""
