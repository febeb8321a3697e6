"""How a model uses facts: a file a way, whose ``Config`` is named by ``model.knowledge.kind``."""
